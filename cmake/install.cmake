# SPDX-License-Identifier: Apache-2.0
# `cmake --install` puts headers and a package config in place, so that find_package(copipe) works.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(copipe_package_dir ${CMAKE_INSTALL_DATADIR}/cmake/copipe)

install(TARGETS copipe EXPORT copipe-targets
    FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
    FILE_SET gpu DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${CMAKE_CURRENT_LIST_DIR}/cuda.cmake ${CMAKE_CURRENT_LIST_DIR}/nccl.cmake
    ${CMAKE_CURRENT_LIST_DIR}/FindNCCL.cmake DESTINATION ${copipe_package_dir})
install(EXPORT copipe-targets NAMESPACE copipe:: DESTINATION ${copipe_package_dir})

configure_package_config_file(
    ${CMAKE_CURRENT_LIST_DIR}/copipe-config.cmake.in ${PROJECT_BINARY_DIR}/copipe-config.cmake
    INSTALL_DESTINATION ${copipe_package_dir})
write_basic_package_version_file(
    ${PROJECT_BINARY_DIR}/copipe-config-version.cmake COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/copipe-config.cmake ${PROJECT_BINARY_DIR}/copipe-config-version.cmake
    DESTINATION ${copipe_package_dir})
