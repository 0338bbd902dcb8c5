# SPDX-License-Identifier: Apache-2.0
# What the presets add for those who work on copipe: warnings as errors, and sanitizers. They name this file in
# CMAKE_PROJECT_copipe_INCLUDE, so it is read right after project(), where the compiler is known; a plain configure,
# and a project that uses copipe, never see it.
#   COPIPE_SANITIZERS   the value for -fsanitize=, or empty

# For C++ alone: CUDA's compiler knows none of these.
add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wconversion;-Wshadow;-Werror>")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # g++ 12 warns falsely about "text" + std::to_string(n) when it is inlined (its bug 105651).
    add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>")
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # With optimization or sanitizers g++ takes members of an empty std::optional for uninitialized: told, not an error.
    add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-Wno-error=maybe-uninitialized>")
endif()

if(COPIPE_SANITIZERS)
    add_compile_options(
        "$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${COPIPE_SANITIZERS};-fno-sanitize-recover=all;-fno-omit-frame-pointer>")
    add_link_options(-fsanitize=${COPIPE_SANITIZERS})
    if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND COPIPE_SANITIZERS MATCHES "thread")
        # Linked in, its operator new would exclude the one with which tests count allocations.
        execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=libclang_rt.tsan-${CMAKE_SYSTEM_PROCESSOR}.so
            OUTPUT_VARIABLE copipe_tsan OUTPUT_STRIP_TRAILING_WHITESPACE)
        cmake_path(GET copipe_tsan PARENT_PATH copipe_tsan)
        add_link_options(-shared-libsan "-Wl,-rpath,${copipe_tsan}")
    endif()
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        # Instrumentation at a function's entry, exit or frame keeps g++ from making symmetric transfer a tail call.
        if(COPIPE_SANITIZERS MATCHES "thread")
            # Asio uses atomic_thread_fence, about which g++ warns that ThreadSanitizer does not model it.
            add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:--param=tsan-instrument-func-entry-exit=0;-Wno-tsan>")
        else()
            add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:--param=asan-stack=0>")
        endif()
    endif()
endif()

# What copipe includes of others, read once, saves clang++ a fifth of its time; g++ gains nothing, a compiler cache
# would lose. Targets with options of their own go without. It is not copipe's own headers: what a file forgets must be
# missed.
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    function(copipe_precompile folder)
        get_property(targets DIRECTORY ${folder} PROPERTY BUILDSYSTEM_TARGETS)
        get_property(common DIRECTORY ${folder} PROPERTY COMPILE_OPTIONS)
        foreach(target IN LISTS targets)
            get_target_property(type ${target} TYPE)
            get_target_property(options ${target} COMPILE_OPTIONS)
            if(type STREQUAL "EXECUTABLE" AND options STREQUAL common)
                target_precompile_headers(${target} REUSE_FROM copipe_precompiled)
            endif()
        endforeach()
        get_property(folders DIRECTORY ${folder} PROPERTY SUBDIRECTORIES)
        foreach(each IN LISTS folders)
            copipe_precompile(${each})
        endforeach()
    endfunction()
    function(copipe_precompile_all)
        file(WRITE ${PROJECT_BINARY_DIR}/precompiled.cpp "")
        add_library(copipe_precompiled OBJECT ${PROJECT_BINARY_DIR}/precompiled.cpp)
        target_link_libraries(copipe_precompiled PRIVATE copipe::copipe)
        target_precompile_headers(copipe_precompiled PRIVATE <algorithm> <atomic> <chrono> <cmath> <deque> <filesystem>
            <fstream> <functional> <future> <map> <memory_resource> <mutex> <numeric> <optional> <random> <span>
            <sstream> <stop_token> <string> <thread> <tuple> <variant> <vector> <boost/asio/io_context.hpp>
            <boost/asio/ip/tcp.hpp> <boost/asio/steady_timer.hpp>)
        copipe_precompile(${PROJECT_SOURCE_DIR})
    endfunction()
    cmake_language(DEFER CALL copipe_precompile_all)
endif()
