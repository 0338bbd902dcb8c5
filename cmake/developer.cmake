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
