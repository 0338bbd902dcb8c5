# SPDX-License-Identifier: Apache-2.0
# cmake -D WAY=... -D SOURCE=copipe's checkout -D BUILD=its build folder -D VERSION=... -D COMPILER=... \
#       -D GENERATOR=... -D SCRATCH=... [-D HINTS=-DBoost_DIR=...] -P run.cmake
# Builds the consumer next to this script against copipe, obtained the given WAY and without network, and runs it.
cmake_minimum_required(VERSION 3.25)

function(run)
    execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(NOT status EQUAL 0)
        list(JOIN ARGN " " command)
        message(FATAL_ERROR "${command}: ${status}\n${output}")
    endif()
endfunction()

file(REMOVE_RECURSE ${SCRATCH})
file(MAKE_DIRECTORY ${SCRATCH})

if(WAY STREQUAL "find_package")
    run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${SCRATCH}/installed)
    list(APPEND HINTS -DCMAKE_PREFIX_PATH=${SCRATCH}/installed)
elseif(WAY STREQUAL "fetch_git")
    # A checkout that belongs to another user is as good as any here.
    file(WRITE ${SCRATCH}/gitconfig "[safe]\n\tdirectory = *\n")
    set(ENV{GIT_CONFIG_GLOBAL} ${SCRATCH}/gitconfig)
    execute_process(COMMAND git -C ${SOURCE} rev-parse HEAD
        RESULT_VARIABLE status OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(NOT status EQUAL 0)
        message("SKIPPED: ${SOURCE} is not a git checkout, or git is not installed.")
        return()
    endif()
    list(APPEND HINTS -DCOPIPE_COMMIT=${commit})
endif()

run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR}/consumer -B ${SCRATCH}/build
    -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${COMPILER}
    -DWAY=${WAY} -DCOPIPE_SOURCE=${SOURCE} -DCOPIPE_VERSION=${VERSION} ${HINTS})
run(${CMAKE_COMMAND} --build ${SCRATCH}/build)
run(${SCRATCH}/build/consumer)
