#include "perturb_images/perturb_images.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>

#include "common/glue.h"

namespace diva {

namespace {

constexpr const char* kOp = "perturb_images";
constexpr int64_t kPixelsAThread = 1 << 14;  // below this a second thread costs more than it saves

struct Arguments {
  Tensor pixels, stages, points, tables, tiles;
  int64_t num_stages, num_points;
};

Tensor rows_argument(const Tensor& tensor, int64_t fields, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long && tensor.dim() == 2 && tensor.size(1) == fields, kOp, ": ",
                  name, " must be Long and [rows, ", fields, "], as plan_perturbations makes it");
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Arguments arguments(const Tensor& pixels, const Tensor& stages, const Tensor& points, const Tensor& tables,
                    const Tensor& tiles) {
  Arguments a{vector_argument(pixels, ScalarType::Byte, kOp, "pixels"),
              rows_argument(stages, kStageFields, "stages"),
              rows_argument(points, kPointFields, "points"),
              vector_argument(tables, ScalarType::Int, kOp, "tables"),
              vector_argument(tiles, ScalarType::Int, kOp, "tiles"),
              stages.size(0),
              points.size(0)};
  for (const Tensor* tensor : {&a.stages, &a.points, &a.tables, &a.tiles}) {
    check_same_device(*tensor, a.pixels, kOp, "the plan");
  }
  return a;
}

// One image through all its stages. Intermediate images live in two buffers of this thread.
class ImageRun {
 public:
  ImageRun(const Plan& plan, const uint8_t* pixels, uint8_t* output) : plan_(plan), pixels_(pixels), output_(output) {}

  void run(int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) run_stage(plan_.stages[s]);
  }

 private:
  void run_stage(const Stage& stage) {
    const int64_t bytes = stage.dst_height * stage.dst_width * stage.channels;
    const uint8_t* source =
        stage.src_buffer == kInput ? pixels_ + stage.src_offset : buffers_[stage.src_buffer == kPong].data();
    uint8_t* result = output_ + stage.dst_offset;
    if (stage.dst_buffer != kOutput) {
      std::vector<uint8_t>& buffer = buffers_[stage.dst_buffer == kPong];
      if (static_cast<int64_t>(buffer.size()) < bytes) buffer.resize(bytes);
      result = buffer.data();
    } else {
      std::memset(result + bytes, 0, padded(bytes) - bytes);
    }
    const uint32_t fill = stage.kind == kRotate ? edge_mean_cpu(stage, source) : 0;
    const int64_t rows_a_thread = std::max<int64_t>(1, kPixelsAThread / stage.dst_width);
    parallel_ranges(stage.dst_height, rows_a_thread, [&](int64_t top, int64_t bottom) {
      perturb_rows_cpu(plan_, stage, source, result, fill, top, bottom);
    });
  }

  const Plan& plan_;
  const uint8_t* pixels_;
  uint8_t* output_;
  std::vector<uint8_t> buffers_[2];
};

// Fresh memory arrives in pages of 4 KiB, each an interrupt: for a large batch that costs more than copying the images.
// Pages of 2 MiB arrive 512 times as seldom.
void prefer_large_pages(uint8_t* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kLargePage = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kLargePage * kLargePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: may fail
#else
  (void)memory, (void)bytes;
#endif
}

// Where each image's stages begin, and the end.
std::vector<int64_t> image_starts(const Stage* stages, int64_t num_stages) {
  std::vector<int64_t> starts;
  for (int64_t s = 0; s < num_stages; ++s) {
    if (s == 0 || stages[s].image != stages[s - 1].image) starts.push_back(s);
  }
  starts.push_back(num_stages);
  return starts;
}

void check_plan_cpu(const Arguments& a, const Plan& plan, int64_t output_bytes) {
  STD_TORCH_CHECK(a.tables.numel() >= kNormalEntries, kOp, ": tables must begin with ", kNormalEntries, " quantiles");
  for (int64_t s = 0; s < a.num_stages; ++s) {
    const Stage& stage = plan.stages[s];
    const int64_t read = stage.src_height * stage.src_width * stage.channels;
    const int64_t written = padded(stage.dst_height * stage.dst_width * stage.channels);
    const bool reads_inside =
        stage.src_buffer != kInput || (stage.src_offset >= 0 && stage.src_offset + read <= a.pixels.numel());
    const bool writes_inside =
        stage.dst_buffer != kOutput || (stage.dst_offset >= 0 && stage.dst_offset + written <= output_bytes);
    const bool points_inside = stage.first_point >= 0 && stage.first_point + stage.num_points <= a.num_points;
    STD_TORCH_CHECK(reads_inside && writes_inside && points_inside, kOp, ": stage ", s,
                    " of the plan lies outside the images; was the plan made for other images?");
  }
}

// Images side by side where there are enough for all threads, else the rows of one image side by side. Inside the first
// loop torch runs the second on the calling thread.
Tensor on_cpu(Tensor pixels, Tensor stages, Tensor points, Tensor tables, Tensor tiles, std::vector<int64_t> launches,
              int64_t seed, int64_t scratch_bytes, int64_t output_bytes) {
  (void)launches, (void)scratch_bytes;  // these speak of CUDA's launches
  const Arguments a = arguments(pixels, stages, points, tables, tiles);
  Tensor output = torch::stable::new_empty(a.pixels, {output_bytes});
  const Plan plan{reinterpret_cast<const Stage*>(a.stages.const_data_ptr<int64_t>()),
                  reinterpret_cast<const Point*>(a.points.const_data_ptr<int64_t>()),
                  a.tables.const_data_ptr<int32_t>(), static_cast<uint64_t>(seed)};
  check_plan_cpu(a, plan, output_bytes);

  const uint8_t* from = a.pixels.const_data_ptr<uint8_t>();
  uint8_t* to = output.mutable_data_ptr<uint8_t>();
  prefer_large_pages(to, output_bytes);
  const std::vector<int64_t> starts = image_starts(plan.stages, a.num_stages);
  const auto run_images = [&](int64_t first, int64_t last) {
    ImageRun run(plan, from, to);
    for (int64_t i = first; i < last; ++i) run.run(starts[i], starts[i + 1]);
  };
  const int64_t num_images = static_cast<int64_t>(starts.size()) - 1;
  const int64_t grain = num_images >= 2 * static_cast<int64_t>(torch::stable::get_num_threads()) ? 1 : num_images;
  parallel_ranges(num_images, grain, run_images);
  return output;
}

Tensor on_cuda(Tensor pixels, Tensor stages, Tensor points, Tensor tables, Tensor tiles, std::vector<int64_t> launches,
               int64_t seed, int64_t scratch_bytes, int64_t output_bytes) {
  const Arguments a = arguments(pixels, stages, points, tables, tiles);
  int64_t num_tiles = 0;
  for (const int64_t count : launches) num_tiles += count;
  check_length(a.tiles, num_tiles, kOp, "tiles");
  const CudaGuard guard(a.pixels, kOp);
  Tensor output = torch::stable::new_empty(a.pixels, {output_bytes});
  Tensor scratch = torch::stable::new_empty(a.pixels, {scratch_bytes});
  Tensor fills = torch::stable::new_empty(a.tables, {a.num_stages}, ScalarType::Int);
  check_cuda(diva_perturb_images_cuda(
                 a.pixels.const_data_ptr<uint8_t>(), reinterpret_cast<const Stage*>(a.stages.const_data_ptr<int64_t>()),
                 reinterpret_cast<const Point*>(a.points.const_data_ptr<int64_t>()), a.tables.const_data_ptr<int32_t>(),
                 a.tiles.const_data_ptr<int32_t>(), launches.data(), static_cast<int64_t>(launches.size()) / 2,
                 static_cast<uint64_t>(seed), scratch.mutable_data_ptr<uint8_t>(), scratch_bytes,
                 reinterpret_cast<uint32_t*>(fills.mutable_data_ptr<int32_t>()), output.mutable_data_ptr<uint8_t>(),
                 current_stream(a.pixels)),
             kOp);
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diva_engine, CPU, m) { m.impl("perturb_images", TORCH_BOX(&on_cpu)); }
STABLE_TORCH_LIBRARY_IMPL(diva_engine, CUDA, m) { m.impl("perturb_images", TORCH_BOX(&on_cuda)); }

}  // namespace diva
