# Decides whether CUDA is built and collects csrc/kernels/*_cuda.cu. Sets for CMakeLists.txt:
#   ATU_HAS_CUDA (0/1), ATU_CUDA_REASON (why it is off), ATU_CUDA_VERSION, ATU_CUDA_ARCHITECTURES_BUILT,
#   ATU_CUDA_OBJECTS, ATU_CUDA_LIBRARIES
set(ATU_HAS_CUDA 0)
set(ATU_CUDA_REASON "")
set(ATU_CUDA_VERSION "")
set(ATU_CUDA_ARCHITECTURES_BUILT "")
set(ATU_CUDA_OBJECTS "")
set(ATU_CUDA_LIBRARIES "")

string(TOLOWER "${ATU_CUDA}" atu_cuda)
if(NOT atu_cuda MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "ATU_CUDA must be auto, on or off, got '${ATU_CUDA}'")
endif()
file(GLOB atu_cuda_sources CONFIGURE_DEPENDS csrc/kernels/*_cuda.cu)

if(atu_cuda STREQUAL "off")
  set(ATU_CUDA_REASON "switched off by ATU_CUDA=off")
elseif(NOT atu_cuda_sources)
  set(ATU_CUDA_REASON "no CUDA sources in this tree")
else()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(ATU_HAS_CUDA 1)
  elseif(atu_cuda STREQUAL "on")
    message(FATAL_ERROR "ATU_CUDA=on but nvcc was not found: put it on PATH or set CUDACXX")
  else()
    set(ATU_CUDA_REASON "nvcc was not found when the package was built")
  endif()
endif()

if(ATU_HAS_CUDA)
  enable_language(CUDA)
  set(ATU_CUDA_VERSION "${CMAKE_CUDA_COMPILER_VERSION}")
  set(ATU_CUDA_ARCHITECTURES_BUILT "${ATU_CUDA_ARCHITECTURES}")
  if(NOT ATU_CUDA_ARCHITECTURES_BUILT)
    set(ATU_CUDA_ARCHITECTURES_BUILT 80-real 90)
  endif()
  add_library(atu_cuda OBJECT ${atu_cuda_sources})
  set_target_properties(atu_cuda PROPERTIES
    CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON
    CUDA_ARCHITECTURES "${ATU_CUDA_ARCHITECTURES_BUILT}"
    CUDA_RUNTIME_LIBRARY Static)
  find_package(CUDAToolkit REQUIRED)
  set(ATU_CUDA_OBJECTS $<TARGET_OBJECTS:atu_cuda>)
  set(ATU_CUDA_LIBRARIES CUDA::cudart_static)
endif()
message(STATUS "CUDA kernels: ${ATU_HAS_CUDA} ${ATU_CUDA_VERSION} ${ATU_CUDA_ARCHITECTURES_BUILT} ${ATU_CUDA_REASON}")
