# Every library that quantd links, all from Debian or Ubuntu (tools/packages.debian).
# Folders link these targets and find nothing themselves:
#
#   gRPC::grpc++ gRPC::grpc++_reflection protobuf::libprotobuf absl::status absl::statusor ...
#   Eigen3::Eigen prometheus-cpp::core PkgConfig::httplib SQLite::SQLite3 OpenSSL::Crypto
#   spdlog::spdlog nlohmann_json::nlohmann_json CLI11::CLI11
#   cjose::cjose (JWT) PkgConfig::xxhash (XXH3) PkgConfig::isal (CRC32C) PkgConfig::openblas
#   GTest::gtest GTest::gtest_main GTest::gmock benchmark::benchmark benchmark::benchmark_main

find_package(Protobuf REQUIRED)
find_package(absl CONFIG REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(Eigen3 3.4 CONFIG REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED)
find_package(SQLite3 REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(CLI11 CONFIG REQUIRED)
find_package(GTest CONFIG REQUIRED)
find_package(benchmark CONFIG REQUIRED)

find_package(PkgConfig REQUIRED)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(isal REQUIRED IMPORTED_TARGET libisal)
pkg_check_modules(openblas REQUIRED IMPORTED_TARGET openblas)
pkg_check_modules(httplib REQUIRED IMPORTED_TARGET cpp-httplib)

# Its pkg-config file asks for the headers of jansson, which ours do not include.
find_library(cjose_LIBRARY cjose REQUIRED)
add_library(cjose::cjose UNKNOWN IMPORTED)
set_target_properties(cjose::cjose PROPERTIES IMPORTED_LOCATION "${cjose_LIBRARY}")
