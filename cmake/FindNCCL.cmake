# SPDX-License-Identifier: Apache-2.0
# Finds NCCL: NCCL_ROOT (a CMake or an environment variable), beside CUDA's toolkit, in the system, or in a wheel of
# Python's nvidia-nccl, which ships only libnccl.so.2 and no name to link by. Defines NCCL::nccl, NCCL_VERSION,
# NCCL_LIBRARY and NCCL_INCLUDE_DIR.
set(NCCL_hints ${CUDAToolkit_ROOT} $ENV{CUDA_HOME} $ENV{CUDA_PATH} ${CUDAToolkit_LIBRARY_ROOT})
foreach(folder IN LISTS CUDAToolkit_INCLUDE_DIRS)
    list(APPEND NCCL_hints ${folder} ${folder}/..)
endforeach()
if(NOT NCCL_LIBRARY OR NOT NCCL_INCLUDE_DIR)
    # Only where a Python is at hand, and only the folder where its packages lie.
    find_program(NCCL_PYTHON NAMES python3 python)
    mark_as_advanced(NCCL_PYTHON)
    if(NCCL_PYTHON)
        execute_process(
            COMMAND ${NCCL_PYTHON} -c "import nvidia.nccl; print(list(nvidia.nccl.__path__)[0])"
            OUTPUT_VARIABLE NCCL_wheel OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
        list(APPEND NCCL_hints ${NCCL_wheel})
    endif()
endif()

find_path(NCCL_INCLUDE_DIR NAMES nccl.h HINTS ${NCCL_hints} PATH_SUFFIXES include)
find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2 NAMES_PER_DIR HINTS ${NCCL_hints}
    PATH_SUFFIXES lib lib64 lib/x86_64-linux-gnu lib/aarch64-linux-gnu)
mark_as_advanced(NCCL_INCLUDE_DIR NCCL_LIBRARY)

if(NCCL_INCLUDE_DIR)
    file(STRINGS ${NCCL_INCLUDE_DIR}/nccl.h NCCL_lines REGEX "^#define NCCL_(MAJOR|MINOR|PATCH) ")
    string(REGEX REPLACE "[^0-9;]" "" NCCL_lines "${NCCL_lines}")
    list(JOIN NCCL_lines "." NCCL_VERSION)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NCCL REQUIRED_VARS NCCL_LIBRARY NCCL_INCLUDE_DIR VERSION_VAR NCCL_VERSION)

if(NCCL_FOUND AND NOT TARGET NCCL::nccl)
    add_library(NCCL::nccl UNKNOWN IMPORTED)
    set_target_properties(NCCL::nccl PROPERTIES
        IMPORTED_LOCATION ${NCCL_LIBRARY}
        INTERFACE_INCLUDE_DIRECTORIES ${NCCL_INCLUDE_DIR})
endif()
