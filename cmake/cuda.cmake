# Decides whether CUDA is built and collects csrc/kernels/*_cuda.cu. Sets for CMakeLists.txt:
#   ATU_HAS_CUDA (0/1), ATU_CUDA_REASON (why it is off), ATU_CUDA_VERSION, ATU_CUDA_ARCHITECTURES_BUILT,
#   ATU_CUDA_OBJECTS, ATU_CUDA_INCLUDES, ATU_CUDA_LIBRARIES
set(ATU_HAS_CUDA 0)
set(ATU_CUDA_REASON "")
set(ATU_CUDA_VERSION "")
set(ATU_CUDA_ARCHITECTURES_BUILT "")
set(ATU_CUDA_OBJECTS "")
set(ATU_CUDA_LIBRARIES "")
set(ATU_CUDA_INCLUDES "")

string(TOLOWER "${ATU_CUDA}" atu_cuda)
if(NOT atu_cuda MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "ATU_CUDA must be auto, on or off, got '${ATU_CUDA}'")
endif()
file(GLOB atu_cuda_sources CONFIGURE_DEPENDS csrc/kernels/*_cuda.cu)

# Every op needs its CUDA half: the bindings call them all. An op is what has a header; a part of one has none.
set(atu_cuda_missing "")
foreach(source IN LISTS ATU_CPU_SOURCES)
  string(REGEX REPLACE "_cpu\\.cpp$" "_cuda.cu" counterpart "${source}")
  string(REGEX REPLACE "_cpu\\.cpp$" ".h" header "${source}")
  if(EXISTS "${header}" AND NOT EXISTS "${counterpart}")
    get_filename_component(counterpart "${counterpart}" NAME)
    list(APPEND atu_cuda_missing "${counterpart}")
  endif()
endforeach()

# nvcc: CUDACXX or PATH (CMake's own search), CUDA_HOME or CUDA_PATH, or the index's nvidia-cuda-nvcc package.
function(atu_find_nvcc)
  if(CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX})
    return()
  endif()
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c "import nvidia, glob, os; print(';'.join(b for p in nvidia.__path__ for b in glob.glob(os.path.join(p, '*', 'bin'))))"
    OUTPUT_VARIABLE packaged OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_program(ATU_NVCC nvcc PATHS ENV PATH "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin" ${packaged} /usr/local/cuda/bin
    NO_DEFAULT_PATH)
  if(ATU_NVCC)
    set(ENV{CUDACXX} "${ATU_NVCC}")
    # The index's package keeps the CUDA runtime in lib, where its own nvcc does not look: CMake's trial builds would
    # not link.
    get_filename_component(root "${ATU_NVCC}" DIRECTORY)
    get_filename_component(root "${root}" DIRECTORY)
    if(EXISTS "${root}/lib/libcudart_static.a")
      set(ENV{LIBRARY_PATH} "${root}/lib:$ENV{LIBRARY_PATH}")
    endif()
  endif()
endfunction()

if(atu_cuda STREQUAL "off")
  set(ATU_CUDA_REASON "switched off by ATU_CUDA=off")
elseif(NOT atu_cuda_sources)
  set(ATU_CUDA_REASON "no CUDA sources in this tree")
elseif(atu_cuda_missing)
  set(ATU_CUDA_REASON "this tree lacks ${atu_cuda_missing}")
else()
  if(NOT CMAKE_CUDA_COMPILER)  # forget a search that failed: there may be a working nvcc by now
    unset(CMAKE_CUDA_COMPILER CACHE)
    unset(ATU_NVCC CACHE)
  endif()
  atu_find_nvcc()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    # Not find_package(CUDAToolkit): it insists on the shared runtime under a name that the index's package lacks.
    get_filename_component(atu_cuda_root "${CMAKE_CUDA_COMPILER}" REALPATH)
    get_filename_component(atu_cuda_root "${atu_cuda_root}" DIRECTORY)
    get_filename_component(atu_cuda_root "${atu_cuda_root}" DIRECTORY)
    find_library(ATU_CUDART_STATIC cudart_static
      HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} "${CMAKE_CUDA_COMPILER_LIBRARY_ROOT}" "${atu_cuda_root}"
      PATH_SUFFIXES lib64 lib)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
      set(ATU_CUDA_REASON "CUDA ${CMAKE_CUDA_COMPILER_VERSION} is too old: 12.0 or later is needed (C++20)")
    elseif(NOT "cuda_std_20" IN_LIST CMAKE_CUDA_COMPILE_FEATURES)
      set(ATU_CUDA_REASON "CMake ${CMAKE_VERSION} is too old for CUDA ${CMAKE_CUDA_COMPILER_VERSION} (C++20)")
    elseif(NOT ATU_CUDART_STATIC)
      string(CONCAT ATU_CUDA_REASON "libcudart_static.a was not found beside ${CMAKE_CUDA_COMPILER} "
        "(package nvidia-cuda-runtime, or cuda-cudart-dev)")
    endif()
  elseif(DEFINED ENV{CUDACXX})
    set(ATU_CUDA_REASON "$ENV{CUDACXX} failed on a trial program when the package was built")
  else()
    set(ATU_CUDA_REASON "nvcc was not found when the package was built")
  endif()
  if(NOT ATU_CUDA_REASON)
    set(ATU_HAS_CUDA 1)
  elseif(atu_cuda STREQUAL "on")
    message(FATAL_ERROR "ATU_CUDA=on but ${ATU_CUDA_REASON}: put a working nvcc on PATH, or set CUDA_HOME or CUDACXX")
  endif()
endif()

if(ATU_HAS_CUDA)
  set(ATU_CUDA_VERSION "${CMAKE_CUDA_COMPILER_VERSION}")
  set(ATU_CUDA_ARCHITECTURES_BUILT "${ATU_CUDA_ARCHITECTURES}")
  if(NOT ATU_CUDA_ARCHITECTURES_BUILT)
    # Turing to the newest the toolkit knows, and PTX of the last for what comes later.
    set(ATU_CUDA_ARCHITECTURES_BUILT 75-real 80-real 86-real 89-real)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
      list(APPEND ATU_CUDA_ARCHITECTURES_BUILT 90)
    else()
      list(APPEND ATU_CUDA_ARCHITECTURES_BUILT 90-real 100-real 120)
    endif()
  endif()
  add_library(atu_cuda OBJECT ${atu_cuda_sources})
  set_target_properties(atu_cuda PROPERTIES
    CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON
    CUDA_ARCHITECTURES "${ATU_CUDA_ARCHITECTURES_BUILT}"
    CUDA_RUNTIME_LIBRARY Static
    JOB_POOL_COMPILE atu_cuda_pool)
  # A job of nvcc takes up to 2 GB.
  cmake_host_system_information(RESULT atu_memory QUERY AVAILABLE_PHYSICAL_MEMORY)
  math(EXPR atu_jobs "${atu_memory} / 2048")
  if(atu_jobs LESS 1)
    set(atu_jobs 1)
  endif()
  set_property(GLOBAL APPEND PROPERTY JOB_POOLS atu_cuda_pool=${atu_jobs})
  find_package(Threads REQUIRED)
  set(ATU_CUDA_OBJECTS $<TARGET_OBJECTS:atu_cuda>)
  set(ATU_CUDA_INCLUDES ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  set(ATU_CUDA_LIBRARIES "${ATU_CUDART_STATIC}" Threads::Threads ${CMAKE_DL_LIBS})
  if(UNIX AND NOT APPLE)
    list(APPEND ATU_CUDA_LIBRARIES rt)
  endif()
endif()
message(STATUS "CUDA kernels: ${ATU_HAS_CUDA} ${ATU_CUDA_VERSION} ${ATU_CUDA_ARCHITECTURES_BUILT} ${ATU_CUDA_REASON}")
