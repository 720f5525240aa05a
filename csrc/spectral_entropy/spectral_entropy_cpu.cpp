#include "spectral_entropy/spectral_entropy.h"

#include <algorithm>
#include <vector>

#include "common/vectorize.h"

namespace diva {

namespace {

constexpr int64_t kTile = 4;      // rows whose products are summed together
constexpr int kEigenvalues = 64;  // bisected together at most, a lane each

template <typename T>
struct Matrix {
  std::vector<T> values;
  int64_t rows, columns;

  Matrix(int64_t rows_, int64_t columns_) : values(rows_ * columns_), rows(rows_), columns(columns_) {}
  T* row(int64_t i) { return values.data() + i * columns; }
  const T* row(int64_t i) const { return values.data() + i * columns; }
};

int64_t rounded_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// The centred features of one image with the shorter side as rows, padded by zeros; adds up the squares of both.
template <typename Stored, typename T>
HOST_DEVICE Matrix<T> centred(const Stored* features, int64_t patches, int64_t dimensions, double& squares) {
  std::vector<T> mean(dimensions);
  for (int64_t p = 0; p < patches; ++p) {
    for (int64_t k = 0; k < dimensions; ++k) mean[k] += to_float(features[p * dimensions + k]);
  }
  const bool patches_are_rows = patches <= dimensions;
  Matrix<T> result(rounded_up(std::min(patches, dimensions), kTile),
                   rounded_up(std::max(patches, dimensions), kVectorLanes));
  for (T& entry : mean) entry /= static_cast<T>(patches);
  for (const T entry : mean) squares += static_cast<double>(entry) * entry * static_cast<double>(patches);
  for (int64_t p = 0; p < patches; ++p) {
    const Stored* patch = features + p * dimensions;
    if (patches_are_rows) {
      for (int64_t k = 0; k < dimensions; ++k) result.row(p)[k] = to_float(patch[k]) - mean[k];
    } else {
      for (int64_t k = 0; k < dimensions; ++k) result.row(k)[p] = to_float(patch[k]) - mean[k];
    }
  }
  return result;
}

// Products of rows i..i+3 with rows j..j+3.
template <typename T>
HOST_DEVICE void tile_products(const Matrix<T>& x, int64_t i, int64_t j, Matrix<T>& gram) {
  T sums[kTile][kTile][kVectorLanes] = {};
  for (int64_t k = 0; k < x.columns; k += kVectorLanes) {
    for (int a = 0; a < kTile; ++a) {
      for (int b = 0; b < kTile; ++b) {
        const T *left = x.row(i + a) + k, *right = x.row(j + b) + k;
        for (int lane = 0; lane < kVectorLanes; ++lane) sums[a][b][lane] += left[lane] * right[lane];
      }
    }
  }
  for (int a = 0; a < kTile; ++a) {
    for (int b = 0; b < kTile; ++b) {
      gram.row(i + a)[j + b] = gram.row(j + b)[i + a] = strided_sum(sums[a][b], kVectorLanes);
    }
  }
}

// row -= v_i * w + w_i * v, and its product with `next`, over [begin, end).
template <typename T>
HOST_DEVICE T update_and_multiply(T* row, const T* v, const T* w, T v_i, T w_i, const T* next, int64_t begin,
                                  int64_t end) {
  T lanes[kVectorLanes] = {};
  int64_t k = begin;
  for (; k + kVectorLanes <= end; k += kVectorLanes) {
    for (int lane = 0; lane < kVectorLanes; ++lane) {
      const T entry = row[k + lane] - (v_i * w[k + lane] + w_i * v[k + lane]);
      row[k + lane] = entry;
      lanes[lane] += entry * next[k + lane];
    }
  }
  for (int lane = 0; k + lane < end; ++lane) {
    row[k + lane] -= v_i * w[k + lane] + w_i * v[k + lane];
    lanes[lane] += row[k + lane] * next[k + lane];
  }
  return strided_sum(lanes, kVectorLanes);
}

template <typename T>
HOST_DEVICE T product(const T* a, const T* b, int64_t begin, int64_t end) {
  T lanes[kVectorLanes] = {};
  int64_t k = begin;
  for (; k + kVectorLanes <= end; k += kVectorLanes) {
    for (int lane = 0; lane < kVectorLanes; ++lane) lanes[lane] += a[k + lane] * b[k + lane];
  }
  for (int lane = 0; k + lane < end; ++lane) lanes[lane] += a[k + lane] * b[k + lane];
  return strided_sum(lanes, kVectorLanes);
}

// The upper left size x size part of `matrix` -> its tridiagonal form. The update A - v w' - w v' of one reflection is
// made in the pass that multiplies with the next, so that every step goes through the matrix once.
template <typename T>
HOST_DEVICE void tridiagonalize(Matrix<T>& matrix, int64_t size, std::vector<T>& diagonal, std::vector<T>& coupling) {
  std::vector<T> v(size), w(size), next(size), y(size);
  for (int64_t j = 0; j < size; ++j) {
    T* row = matrix.row(j);
    for (int64_t k = j; k < size; ++k) row[k] -= v[j] * w[k] + w[j] * v[k];
    diagonal[j] = row[j];
    if (j + 1 == size) break;
    const Reflection<T> turn = reflection(row[j + 1], product(row, row, j + 2, size));
    coupling[j] = turn.alpha;
    std::copy(row + j + 1, row + size, next.begin() + j + 1);
    next[j + 1] = turn.first;
    for (int64_t i = j + 1; i < size; ++i) {
      y[i] = update_and_multiply(matrix.row(i), v.data(), w.data(), v[i], w[i], next.data(), j + 1, size);
    }
    const T half = turn.scale / 2 * turn.scale * product(y.data(), next.data(), j + 1, size);
    for (int64_t k = j + 1; k < size; ++k) w[k] = turn.scale * y[k] - half * next[k];
    std::swap(v, next);
  }
}

// Eigenvalues number first..first+kCount-1 in rising order, all of them in [0, 1] but for rounding.
template <int kCount, typename T>
HOST_DEVICE void bisect(const std::vector<T>& diagonal, const std::vector<T>& coupling_squared, int64_t size,
                        int64_t first, T* eigenvalues) {
  T low[kCount], high[kCount], x[kCount], pivot[kCount];
  int below[kCount];
  std::fill(low, low + kCount, T(0));
  std::fill(high, high + kCount, T(1));
  for (int step = 0; step < kBisections; ++step) {
    for (int lane = 0; lane < kCount; ++lane) {
      x[lane] = (low[lane] + high[lane]) / 2;
      pivot[lane] = T(1);
      below[lane] = 0;
    }
    for (int64_t i = 0; i < size; ++i) {
      const T entry = diagonal[i], squared = i == 0 ? T(0) : coupling_squared[i - 1];
      for (int lane = 0; lane < kCount; ++lane) {
        pivot[lane] = sturm_pivot(entry, squared, x[lane], pivot[lane]);
      }
      for (int lane = 0; lane < kCount; ++lane) below[lane] += pivot[lane] < 0;
    }
    for (int lane = 0; lane < kCount; ++lane) {
      const bool is_below = below[lane] > static_cast<int>(first) + lane;
      high[lane] = is_below ? x[lane] : high[lane];
      low[lane] = is_below ? low[lane] : x[lane];
    }
  }
  for (int lane = 0; lane < kCount; ++lane) eigenvalues[lane] = (low[lane] + high[lane]) / 2;
}

// The next eigenvalues, in as few lanes as hold them: a division a lane is most of the work of a small image.
template <typename T>
HOST_DEVICE int64_t next_eigenvalues(const std::vector<T>& diagonal, const std::vector<T>& coupling_squared,
                                     int64_t size, int64_t first, T* eigenvalues) {
  const int64_t left = size - first;
  if (left <= kEigenvalues / 2) {  // not fewer: GCC unrolls loops of 16 and makes no vector code of them
    bisect<kEigenvalues / 2>(diagonal, coupling_squared, size, first, eigenvalues);
  } else {
    bisect<kEigenvalues>(diagonal, coupling_squared, size, first, eigenvalues);
  }
  return std::min<int64_t>(kEigenvalues, left);
}

template <typename Stored, typename T>
HOST_DEVICE T image_entropy(const Stored* features, int64_t patches, int64_t dimensions) {
  const int64_t size = std::min(patches, dimensions);
  if (size == 0) return T(0);
  double squares = 0, spread = 0;
  const Matrix<T> x = centred<Stored, T>(features, patches, dimensions, squares);
  Matrix<T> gram(x.rows, x.rows);
  for (int64_t i = 0; i < x.rows; i += kTile) {
    for (int64_t j = 0; j <= i; j += kTile) tile_products(x, i, j, gram);
  }
  for (int64_t i = 0; i < size; ++i) spread += gram.row(i)[i];
  if (has_no_spread(spread, squares + spread)) return T(0);
  const T to_shares = static_cast<T>(1 / spread);
  for (T& entry : gram.values) entry *= to_shares;

  std::vector<T> diagonal(size), coupling(size);
  tridiagonalize(gram, size, diagonal, coupling);
  for (T& entry : coupling) entry *= entry;
  double entropy = 0;
  T eigenvalues[kEigenvalues];
  for (int64_t first = 0; first < size; first += kEigenvalues) {
    const int64_t count = next_eigenvalues(diagonal, coupling, size, first, eigenvalues);
    for (int64_t k = 0; k < count; ++k) entropy += entropy_term(static_cast<double>(eigenvalues[k]));
  }
  return static_cast<T>(spread == spread ? entropy : spread);
}

template <typename Stored, typename T>
HOST_DEVICE void image_entropies(const Stored* features, int64_t dimensions, const int64_t* offsets, int64_t first,
                                 int64_t last, T* entropy) {
  for (int64_t b = first; b < last; ++b) {
    entropy[b] = image_entropy<Stored, T>(features + offsets[b] * dimensions, offsets[b + 1] - offsets[b], dimensions);
  }
}

}  // namespace

// GCC clones functions, not templates: one a type.
template <>
CPU_CLONES void spectral_entropy_cpu(const float* features, int64_t dimensions, const int64_t* offsets, int64_t first,
                                     int64_t last, float* entropy) {
  image_entropies(features, dimensions, offsets, first, last, entropy);
}

template <>
CPU_CLONES void spectral_entropy_cpu(const BFloat16* features, int64_t dimensions, const int64_t* offsets,
                                     int64_t first, int64_t last, float* entropy) {
  image_entropies(features, dimensions, offsets, first, last, entropy);
}

template <>
CPU_CLONES void spectral_entropy_cpu(const Float16* features, int64_t dimensions, const int64_t* offsets, int64_t first,
                                     int64_t last, float* entropy) {
  image_entropies(features, dimensions, offsets, first, last, entropy);
}

template <>
void spectral_entropy_cpu(const double* features, int64_t dimensions, const int64_t* offsets, int64_t first,
                          int64_t last, double* entropy) {
  image_entropies(features, dimensions, offsets, first, last, entropy);
}

}  // namespace diva
