# SPDX-License-Identifier: Apache-2.0
# Dependencies are found, never fetched; a missing one is named together with the Debian package that brings it.

# copipe_find(NAME [VERSION x.y] TARGET target FOR "use" PACKAGE "Debian package(s)")
macro(copipe_find name)
    cmake_parse_arguments(copipe_find "" "VERSION;TARGET;FOR;PACKAGE" "" ${ARGN})
    find_package(${name} ${copipe_find_VERSION} QUIET)
    if(NOT TARGET ${copipe_find_TARGET})
        message(FATAL_ERROR
            "copipe needs ${name} ${copipe_find_VERSION} for ${copipe_find_FOR} and did not find it.\n"
            "Install the package ${copipe_find_PACKAGE}, or point CMAKE_PREFIX_PATH at it.")
    endif()
endmacro()
