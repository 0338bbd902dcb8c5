# SPDX-License-Identifier: Apache-2.0
# The component copipe::cuda, where CUDA's toolkit is found: copipe and the CUDA runtime, linked statically, so that a
# program starts on machines without a driver. Read by the build and by the installed package.
find_package(CUDAToolkit QUIET)
if(TARGET CUDA::cudart_static AND NOT TARGET copipe::cuda)
    add_library(copipe_cuda INTERFACE)
    add_library(copipe::cuda ALIAS copipe_cuda)
    target_link_libraries(copipe_cuda INTERFACE copipe::copipe CUDA::cudart_static)
endif()
