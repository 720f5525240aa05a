# Target diva::torch_stable: torch's stable-ABI headers, and libtorch.so by name only. find_package(Torch) is not used: for a
# CUDA build of torch it asks for the whole CUDA toolkit, and it would tie the binary to that one torch.
set(DIVA_TORCH_DIR "" CACHE PATH "the installed torch package folder")
if(NOT EXISTS ${DIVA_TORCH_DIR}/include/torch/csrc/stable/library.h)
  message(FATAL_ERROR "DIVA_TORCH_DIR=${DIVA_TORCH_DIR} has no headers of torch >= 2.10")
endif()

# An empty library with the right name is enough to record the dependency; at run time torch's own is already loaded. The
# dependency must be kept though nothing needs it at link time: the weak stream symbol is found through it.
if(NOT EXISTS ${CMAKE_BINARY_DIR}/torch_stub.c)
  file(WRITE ${CMAKE_BINARY_DIR}/torch_stub.c "")
endif()
add_library(torch_stub SHARED ${CMAKE_BINARY_DIR}/torch_stub.c)
set_target_properties(torch_stub PROPERTIES OUTPUT_NAME torch LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/stub)

add_library(diva_torch_stable INTERFACE)
add_library(diva::torch_stable ALIAS diva_torch_stable)
target_include_directories(diva_torch_stable SYSTEM INTERFACE ${DIVA_TORCH_DIR}/include)
target_compile_definitions(diva_torch_stable INTERFACE TORCH_TARGET_VERSION=0x020a000000000000ULL)
target_link_libraries(diva_torch_stable INTERFACE -Wl,--no-as-needed torch_stub -Wl,--as-needed)
