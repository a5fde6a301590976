# SPDX-License-Identifier: MIT
# Installs the headers and a relocatable package: find_package(lpo [COMPONENTS png jpeg mpi cuda]).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(DIRECTORY include/lpo DESTINATION include FILES_MATCHING PATTERN "*.hpp" PATTERN "*.cuh")
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(TARGETS lpo EXPORT lpo_targets)
foreach(component IN ITEMS png jpeg mpi cuda)
  # One export file per component, so that a missing libpng does not break a program that never draws.
  if(TARGET lpo_${component})
    install(TARGETS lpo_${component} EXPORT lpo_${component}_targets)
    install(EXPORT lpo_${component}_targets NAMESPACE lpo:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/lpo
            FILE lpo-${component}.cmake)
  endif()
endforeach()
install(EXPORT lpo_targets NAMESPACE lpo:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/lpo FILE lpo-targets.cmake)

configure_package_config_file(cmake/lpo-config.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/lpo-config.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/lpo)
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/lpo-config-version.cmake
                                 COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/lpo-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/lpo-config-version.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/lpo)
