# SPDX-License-Identifier: Apache-2.0
# The component copipe::nccl, where CUDA's toolkit and NCCL are found: copipe::cuda and NCCL's shared library. Read by
# the build and by the installed package, after cuda.cmake.
if(TARGET copipe::cuda AND NOT TARGET copipe::nccl)
    list(PREPEND CMAKE_MODULE_PATH ${CMAKE_CURRENT_LIST_DIR})
    find_package(NCCL 2.18 QUIET)
    list(POP_FRONT CMAKE_MODULE_PATH)
    if(TARGET NCCL::nccl)
        add_library(copipe_nccl INTERFACE)
        add_library(copipe::nccl ALIAS copipe_nccl)
        target_link_libraries(copipe_nccl INTERFACE copipe::cuda NCCL::nccl)
    endif()
endif()
