# The one list of sources. Every build path reads it: the wheel, the CPU emulation and the sanitizer builds of the tests.
set(DIVA_OPS
  group_stats
  diva_advantage
  shared_std_advantage
  update_difficulty
  policy_loss
  token_logprob
  spectral_entropy
  perturb_images
  histogram_entropy
)
# <op>/<op>.cpp: torch glue      <op>/<op>_cpu.cpp: the CPU loop, no torch
# <op>/<op>_cuda.cu: kernels and their launchers, no torch. Without nvcc the C++ compiler takes the launchers only.
set(DIVA_GLUE_SOURCES schemas.cpp common/glue.cpp)
set(DIVA_PYTHON_SOURCES python/module.cpp python/array.cpp python/groups.cpp python/advantages.cpp)
set(DIVA_CPU_SOURCES common/checks.cpp)
set(DIVA_CUDA_SOURCES common/device_cuda.cu)
set(DIVA_LAUNCHER_SOURCES common/run_time.cpp)
set(DIVA_SHORT_LOOP_SOURCES group_stats/group_stats_cpu.cpp diva_advantage/diva_advantage_cpu.cpp
                            shared_std_advantage/shared_std_advantage_cpu.cpp)
foreach(op IN LISTS DIVA_OPS)
  list(APPEND DIVA_GLUE_SOURCES ${op}/${op}.cpp)
  list(APPEND DIVA_CPU_SOURCES ${op}/${op}_cpu.cpp)
  list(APPEND DIVA_CUDA_SOURCES ${op}/${op}_cuda.cu)
  list(APPEND DIVA_LAUNCHER_SOURCES ${op}/${op}_cuda.cu)
endforeach()
