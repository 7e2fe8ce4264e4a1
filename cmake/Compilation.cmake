# Language level, warnings, instruction set, sanitizers and linker: the same for every target.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O3 -g1")
if(NOT QUANTD_SANITIZE STREQUAL "none")
  # Instrumented Eigen at -O3 takes minutes a file to compile.
  set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1")
endif()

find_package(Threads REQUIRED)

function(quantd_cxx_options)
  foreach(flag IN LISTS ARGN)
    add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:${flag}>")
  endforeach()
endfunction()

quantd_cxx_options(-Wall -Wextra)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # GCC's AVX headers start from deliberately uninitialized registers (GCC bug 105593): with -O3
  # these two warn all over Eigen's products. clang keeps both switched on.
  quantd_cxx_options(-Wno-maybe-uninitialized -Wno-uninitialized)
endif()
if(QUANTD_WERROR)
  quantd_cxx_options(-Werror)
endif()

# Global, never per target: Eigen's alignment, and so the layout of its types, follows from it.
if(QUANTD_MARCH)
  quantd_cxx_options(-march=${QUANTD_MARCH})
endif()

if(QUANTD_SANITIZE STREQUAL "address")
  set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=all)
elseif(QUANTD_SANITIZE STREQUAL "thread")
  set(sanitizers -fsanitize=thread)
elseif(NOT QUANTD_SANITIZE STREQUAL "none")
  message(FATAL_ERROR "QUANTD_SANITIZE is '${QUANTD_SANITIZE}'; expected none, address or thread")
endif()
if(sanitizers)
  quantd_cxx_options(${sanitizers} -fno-omit-frame-pointer)
  add_link_options(${sanitizers})
endif()

if(QUANTD_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "QUANTD_FUZZ needs clang (libFuzzer); use the preset 'fuzz'")
  endif()
  quantd_cxx_options(-fsanitize=fuzzer-no-link)
endif()

find_program(QUANTD_LLD ld.lld)
if(QUANTD_LLD)
  add_link_options("$<$<LINK_LANGUAGE:CXX>:-fuse-ld=lld>")
endif()
