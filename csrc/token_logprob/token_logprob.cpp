#include "token_logprob/token_logprob.h"

#include "common/glue.h"

namespace diva {

namespace {

constexpr const char* kOp = "token_logprob";
constexpr int64_t kLogitsAThread = 1 << 15;  // below this a second thread costs more than it saves

using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;  // logprob, entropy, log_norm, [T] each

int64_t rows_a_thread(int64_t num_columns) { return kLogitsAThread / num_columns + 1; }

// What both passes check: [T,V] logits whose rows are contiguous, T targets, in range where one can look.
struct Arguments {
  Tensor logits, targets;
  double temperature;

  Arguments(const Tensor& logits_in, const Tensor& targets_in, double temperature_in)
      : logits(logits_in),
        targets(vector_argument(targets_in, ScalarType::Long, kOp, "targets")),
        temperature(temperature_in) {
    const ScalarType type = logits.scalar_type();
    STD_TORCH_CHECK(logits.dim() == 2, kOp, ": logits must have two dimensions [T,V], not ", logits.dim());
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half ||
                        (type == ScalarType::Double && logits.is_cpu()),
                    kOp, ": logits must be Float, BFloat16 or Half (or Double on the CPU), not ",
                    torch::headeronly::toString(type));
    STD_TORCH_CHECK(logits.size(1) > 0, kOp, ": logits must have at least one column");
    STD_TORCH_CHECK(temperature > 0, kOp, ": temperature must be above 0, not ", temperature);
    check_length(targets, logits.size(0), kOp, "targets");
    check_same_device(targets, logits, kOp, "targets");
    if (logits.stride(1) != 1 && logits.size(1) > 1) logits = torch::stable::contiguous(logits);
  }

  void check_targets() const {
    const int64_t* target = targets.const_data_ptr<int64_t>();
    for (int64_t t = 0; t < targets.numel(); ++t) {
      STD_TORCH_CHECK(target[t] >= 0 && target[t] < logits.size(1), kOp, ": target ", t, " is ", target[t],
                      ", but there are ", logits.size(1), " logits");
    }
  }

  ScalarType result_type() const {
    return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }

  Tensor new_result() const { return torch::stable::new_empty(logits, {logits.size(0)}, result_type()); }
};

template <typename Stored>
Logits<const Stored> as_input(const Tensor& logits) {
  return {static_cast<const Stored*>(logits.const_data_ptr()), logits.stride(0), logits.size(0), logits.size(1)};
}

template <typename Stored>
Logits<Stored> as_output(const Tensor& logits) {
  return {static_cast<Stored*>(logits.mutable_data_ptr()), logits.stride(0), logits.size(0), logits.size(1)};
}

struct Results {
  Tensor logprob, entropy, log_norm;

  static Results of(const Arguments& arguments) {
    return {arguments.new_result(), arguments.new_result(), arguments.new_result()};
  }

  template <typename T>
  TokenResults<T> output() const {
    return {logprob.mutable_data_ptr<T>(), entropy.mutable_data_ptr<T>(), log_norm.mutable_data_ptr<T>()};
  }

  template <typename T>
  TokenResults<const T> input() const {
    return {logprob.const_data_ptr<T>(), entropy.const_data_ptr<T>(), log_norm.const_data_ptr<T>()};
  }
};

struct Gradients {
  std::optional<Tensor> logprob, entropy;

  void check(const Arguments& arguments) {
    for (std::optional<Tensor>* gradient : {&logprob, &entropy}) {
      if (!*gradient) continue;
      *gradient = vector_argument(**gradient, arguments.result_type(), kOp, "gradient");
      check_length(**gradient, arguments.logits.size(0), kOp, "gradient");
      check_same_device(**gradient, arguments.logits, kOp, "gradient");
    }
  }

  template <typename T>
  TokenGradients<T> pointers() const {
    return {logprob ? logprob->const_data_ptr<T>() : nullptr, entropy ? entropy->const_data_ptr<T>() : nullptr};
  }
};

// Calls f(Stored{}, T{}) for the types of the logits and of the results.
template <typename F>
void with_cpu_types(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{}, float{});
    case ScalarType::BFloat16:
      return f(BFloat16{}, float{});
    case ScalarType::Half:
      return f(Float16{}, float{});
    default:
      return f(double{}, double{});
  }
}

Results forward_cpu(const Arguments& arguments) {
  arguments.check_targets();
  const Results results = Results::of(arguments);
  const Tensor& logits = arguments.logits;
  with_cpu_types(logits.scalar_type(), [&](auto stored, auto real) {
    using Stored = decltype(stored);
    using T = decltype(real);
    parallel_ranges(logits.size(0), rows_a_thread(logits.size(1)), [&](int64_t first, int64_t last) {
      token_logprob_cpu(as_input<Stored>(logits), arguments.targets.const_data_ptr<int64_t>(),
                        static_cast<T>(arguments.temperature), first, last, results.output<T>());
    });
  });
  return results;
}

void backward_cpu(const Arguments& arguments, const Results& results, const Gradients& gradients,
                  const Tensor& output) {
  const Tensor& logits = arguments.logits;
  with_cpu_types(logits.scalar_type(), [&](auto stored, auto real) {
    using Stored = decltype(stored);
    using T = decltype(real);
    parallel_ranges(logits.size(0), rows_a_thread(logits.size(1)), [&](int64_t first, int64_t last) {
      token_logprob_backward_cpu(as_input<Stored>(logits), arguments.targets.const_data_ptr<int64_t>(),
                                 static_cast<T>(arguments.temperature), first, last, results.input<T>(),
                                 gradients.pointers<T>(), as_output<Stored>(output));
    });
  });
}

DivaLogitType logit_type(const Tensor& logits) {
  if (logits.scalar_type() == ScalarType::Float) return DivaLogitType::kFloat;
  return logits.scalar_type() == ScalarType::BFloat16 ? DivaLogitType::kBFloat16 : DivaLogitType::kFloat16;
}

Results forward_cuda(const Arguments& arguments) {
  const Tensor& logits = arguments.logits;
  const CudaGuard guard(logits, kOp);
  const Results results = Results::of(arguments);
  check_cuda(diva_token_logprob_cuda(
                 logit_type(logits), as_input<void>(logits), arguments.targets.const_data_ptr<int64_t>(),
                 static_cast<float>(arguments.temperature), results.output<float>(), current_stream(logits)),
             kOp);
  return results;
}

void backward_cuda(const Arguments& arguments, const Results& results, const Gradients& gradients,
                   const Tensor& output) {
  const Tensor& logits = arguments.logits;
  const CudaGuard guard(logits, kOp);
  check_cuda(diva_token_logprob_backward_cuda(
                 logit_type(logits), as_input<void>(logits), arguments.targets.const_data_ptr<int64_t>(),
                 static_cast<float>(arguments.temperature), results.input<float>(), gradients.pointers<float>(),
                 as_output<void>(output), current_stream(logits)),
             kOp);
}

template <Results (*Forward)(const Arguments&)>
ThreeTensors token_logprob(Tensor logits, Tensor targets, double temperature) {
  const Arguments arguments(logits, targets, temperature);
  const Results results = Forward(arguments);
  return {results.logprob, results.entropy, results.log_norm};
}

template <void (*Backward)(const Arguments&, const Results&, const Gradients&, const Tensor&)>
Tensor token_logprob_backward(Tensor logits, Tensor targets, Tensor logprob, Tensor entropy, Tensor log_norm,
                              std::optional<Tensor> logprob_gradient, std::optional<Tensor> entropy_gradient,
                              double temperature) {
  const Arguments arguments(logits, targets, temperature);
  Gradients gradients{logprob_gradient, entropy_gradient};
  gradients.check(arguments);
  const Tensor output = torch::stable::new_empty(logits, {logits.size(0), logits.size(1)});
  Backward(arguments, {logprob, entropy, log_norm}, gradients, output);
  return output;
}

template <void (*Backward)(const Arguments&, const Results&, const Gradients&, const Tensor&)>
void token_logprob_backward_in_place(Tensor logits, Tensor targets, Tensor logprob, Tensor entropy, Tensor log_norm,
                                     std::optional<Tensor> logprob_gradient, std::optional<Tensor> entropy_gradient,
                                     double temperature) {
  STD_TORCH_CHECK(logits.dim() == 2 && (logits.stride(1) == 1 || logits.size(1) == 1), kOp,
                  ": the gradient can only take the place of logits whose rows are contiguous");
  const Arguments arguments(logits, targets, temperature);
  Gradients gradients{logprob_gradient, entropy_gradient};
  gradients.check(arguments);
  Backward(arguments, {logprob, entropy, log_norm}, gradients, logits);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diva_engine, CPU, m) {
  m.impl("token_logprob", TORCH_BOX(&token_logprob<forward_cpu>));
  m.impl("token_logprob_backward", TORCH_BOX(&token_logprob_backward<backward_cpu>));
  m.impl("token_logprob_backward_", TORCH_BOX(&token_logprob_backward_in_place<backward_cpu>));
}
STABLE_TORCH_LIBRARY_IMPL(diva_engine, CUDA, m) {
  m.impl("token_logprob", TORCH_BOX(&token_logprob<forward_cuda>));
  m.impl("token_logprob_backward", TORCH_BOX(&token_logprob_backward<backward_cuda>));
  m.impl("token_logprob_backward_", TORCH_BOX(&token_logprob_backward_in_place<backward_cuda>));
}

}  // namespace diva
