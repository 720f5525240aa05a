#include "common/cooperative.h"
#include "diva_advantage/diva_advantage.h"

namespace diva {

constexpr int kDivaThreads = 256;
constexpr int kDivaWarps = kDivaThreads / kLanes;
constexpr int kDivaMaxBlocks = 512;

__global__ void diva_advantage_kernel(DivaInput<float> input, DivaOptions options, DivaOutput<float> output,
                                      BatchSums* block_sums, GroupScale<float>* prompts, GroupScale<float>* questions);

#if !defined(DIVA_RUN_TIME_KERNELS)
// A prompt's or a question's scale, and its share in the batch sums. Called by a whole warp.
__device__ __forceinline__ GroupScale<float> scale_group(const DivaInput<float>& input, const DivaOptions& options,
                                                         Segment segment, float difficulty, int lane, BatchSums& sums) {
  const auto moments = warp_group_moments(input.rewards + segment.begin, segment.count, lane);
  const auto scale = group_scale(moments, difficulty, options);
  if (options.balance == Balance::kPaddedTokens) {
    for (int64_t i = segment.begin + lane; i < segment.begin + segment.count; i += kLanes) {
      sums = join(sums, sums_of_rollout(input.rewards[i], scale, input.lengths[i]));
    }
  } else if (lane == 0) {
    sums = join(sums, sums_of_group(moments, scale));
  }
  return scale;
}

__device__ __forceinline__ BatchSums shuffled(const BatchSums& sums, int half) {
  return {__shfl_xor_sync(kWholeWarp, sums.sum, half), __shfl_xor_sync(kWholeWarp, sums.squares, half),
          __shfl_xor_sync(kWholeWarp, sums.largest, half)};
}

__device__ __forceinline__ BatchSums warp_join(BatchSums sums) {
  for (int half = kLanes / 2; half > 0; half /= 2) sums = join(sums, shuffled(sums, half));
  return sums;
}

// Joins the sums of all threads of a block; the first warp gets the result.
__device__ __forceinline__ BatchSums block_join(BatchSums sums, BatchSums* of_warp) {
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  sums = warp_join(sums);
  __syncthreads();  // an earlier call may still be reading
  if (lane == 0) of_warp[warp] = sums;
  __syncthreads();
  return warp_join(lane < kDivaWarps ? of_warp[lane] : BatchSums{});
}

// Rollouts of one prompt of question q, by one warp.
__device__ __forceinline__ void write_prompt(const DivaInput<float>& input, const DivaOptions& options,
                                             Segment rollouts, const GroupScale<float>& prompt,
                                             const GroupScale<float>& question, const BatchScale<float>* batch,
                                             const DivaOutput<float>& output, int lane) {
  const auto weight = difficulty_weight(prompt.difficulty, question.difficulty, options);
  for (int64_t i = rollouts.begin + lane; i < rollouts.begin + rollouts.count; i += kLanes) {
    const auto advantage = advantage_of(input.rewards[i], prompt, question, batch[0], batch[1], weight, options);
    output.advantage[i] = advantage.total;
    output.local[i] = advantage.local;
    output.global[i] = advantage.global;
  }
}

// rewards [N] -> advantage, local, global [N]. One warp a question, lanes over its rollouts; the grid strides over
// questions. First every warp scales its groups and all blocks leave their batch sums; the grid waits; then every warp
// writes its rollouts. A warp meets the same questions both times, so of the scratch only the batch sums travel between
// warps.
__global__ void __launch_bounds__(kDivaThreads, 2)  // two blocks a processor leave 128 registers: no spills
    diva_advantage_kernel(DivaInput<float> input, DivaOptions options, DivaOutput<float> output,
                          BatchSums* __restrict__ block_sums, GroupScale<float>* __restrict__ prompts,
                          GroupScale<float>* __restrict__ questions) {
  __shared__ BatchSums of_warp[kDivaWarps];
  __shared__ BatchScale<float> batch[2];
  const int lane = threadIdx.x % kLanes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kDivaWarps + threadIdx.x / kLanes;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kDivaWarps;

  BatchSums local{}, global{};
  for (int64_t q = first; q < input.num_questions; q += stride) {
    const Segment family = segment_at(input.question_offsets, q, input.num_prompts);
    float difficulty = 0.0f;
    int64_t begin = 0, end = 0;
    for (int64_t p = family.begin; p < family.begin + family.count; ++p) {
      const Segment rollouts = segment_at(input.prompt_offsets, p, input.num_rollouts);
      if (p == family.begin) begin = rollouts.begin;
      end = rollouts.begin + rollouts.count;
      const auto prompt = scale_group(input, options, rollouts, input.difficulty[p], lane, local);
      if (lane == 0) prompts[p] = prompt;
      difficulty += input.difficulty[p];
    }
    if (family.count > 0) difficulty /= static_cast<float>(family.count);
    const Segment rollouts{begin, end > begin ? end - begin : 0};
    const auto question = scale_group(input, options, rollouts, difficulty, lane, global);
    if (lane == 0) questions[q] = question;
  }

  local = block_join(local, of_warp);
  global = block_join(global, of_warp);
  if (threadIdx.x == 0) {
    block_sums[2 * blockIdx.x] = local;
    block_sums[2 * blockIdx.x + 1] = global;
  }
  DIVA_GRID_SYNC();

  const int warp = threadIdx.x / kLanes;
  if (warp < 2) {  // the first warp joins the local sums, the second the global ones
    BatchSums sums{};
    for (unsigned block = lane; block < gridDim.x; block += kLanes) sums = join(sums, block_sums[2 * block + warp]);
    sums = warp_join(sums);
    if (lane == 0) batch[warp] = batch_scale<float>(sums, input.num_rollouts, options);
  }
  __syncthreads();

  for (int64_t q = first; q < input.num_questions; q += stride) {
    const Segment family = segment_at(input.question_offsets, q, input.num_prompts);
    for (int64_t p = family.begin; p < family.begin + family.count; ++p) {
      const Segment rollouts = segment_at(input.prompt_offsets, p, input.num_rollouts);
      write_prompt(input, options, rollouts, prompts[p], questions[q], batch, output, lane);
    }
  }
}

#endif  // DIVA_RUN_TIME_KERNELS

}  // namespace diva

#if !defined(__CUDACC_RTC__)
extern "C" int64_t diva_advantage_scratch_bytes(int64_t num_prompts, int64_t num_questions) {
  return 2 * diva::kDivaMaxBlocks * sizeof(diva::BatchSums) +
         (num_prompts + num_questions) * sizeof(diva::GroupScale<float>);
}

extern "C" int diva_advantage_cuda(const diva::DivaInput<float>* input, const diva::DivaOptions* options,
                                   const diva::DivaOutput<float>* output, void* scratch, void* stream) {
  if (input->num_questions == 0) return cudaSuccess;
  int64_t blocks = (input->num_questions + diva::kDivaWarps - 1) / diva::kDivaWarps;
  const int error = DIVA_LIMIT_COOPERATIVE(diva::diva_advantage_kernel, diva::kDivaThreads, &blocks);
  if (error != cudaSuccess) return error;
  if (blocks > diva::kDivaMaxBlocks) blocks = diva::kDivaMaxBlocks;

  auto* block_sums = static_cast<diva::BatchSums*>(scratch);
  auto* prompts = reinterpret_cast<diva::GroupScale<float>*>(block_sums + 2 * diva::kDivaMaxBlocks);
  auto* questions = prompts + input->num_prompts;
  return DIVA_LAUNCH_COOPERATIVE(diva::diva_advantage_kernel, dim3(static_cast<unsigned>(blocks)),
                                 dim3(diva::kDivaThreads), 0, stream, *input, *options, *output, block_sums, prompts,
                                 questions);
}
#endif
