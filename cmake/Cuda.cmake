# Decides whether the CUDA backend is built: QUANTD_CUDA_ENABLED.
# The compiler is, in this order: CMAKE_CUDA_COMPILER, an nvcc on PATH or in /usr/local/cuda, or
# the one that `./dev setup --cuda` put into .cuda/ of this checkout.

set(QUANTD_CUDA_ENABLED OFF)
if(NOT QUANTD_CUDA STREQUAL "OFF")
  set(quantd_cuda_wheels "${CMAKE_CURRENT_LIST_DIR}/../.cuda")
  if(NOT CMAKE_CUDA_COMPILER)
    find_program(QUANTD_NVCC nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda/bin
                 "${quantd_cuda_wheels}/bin")
    if(QUANTD_NVCC)
      set(CMAKE_CUDA_COMPILER "${QUANTD_NVCC}")
    endif()
  endif()
  if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_ARCHITECTURES ${QUANTD_CUDA_ARCHITECTURES})
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_EXTENSIONS OFF)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc 13 has C++20
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    endif()
    if(NOT TARGET CUDA::nvToolsExt)
      # CMake 3.25 annotates this target without asking whether it exists; CUDA 13 has it no more.
      add_library(CUDA::nvToolsExt INTERFACE IMPORTED)
    endif()
    find_package(CUDAToolkit REQUIRED)
    # CMake takes nvcc's own library folder for one that the loader searches anyway.
    list(APPEND CMAKE_BUILD_RPATH "${CUDAToolkit_LIBRARY_DIR}")
    set(QUANTD_CUDA_ENABLED ON)
    message(STATUS "quantd: CUDA ${CUDAToolkit_VERSION} for sm ${QUANTD_CUDA_ARCHITECTURES}, "
                   "${CMAKE_CUDA_COMPILER}")
  elseif(QUANTD_CUDA STREQUAL "ON")
    message(FATAL_ERROR "QUANTD_CUDA=ON, but there is no nvcc; run ./dev setup --cuda")
  else()
    message(STATUS "quantd: no CUDA compiler found, this build is CPU-only")
  endif()
endif()
