#include <algorithm>

#include "compute/backend/cuda/rans_kernels.h"
#include "compute/coding/segment_fault.h"
#include "compute/coding/token_alphabet.h"

namespace quantd::compute {
namespace {

constexpr int kLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr uint32_t kLeastState = 1u << 16;
constexpr int kWordBits = 16;
// Rounds whose values are on their way while others are encoded.
constexpr int kAhead = 8;

// A value with what its round needs of the tables.
struct Symbol {
  RansStep step;
  uint32_t raw;
  int raw_bits;
};

__device__ RansStep LoadStep(const RansStep* from) {
  const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from));
  return {.reciprocal = uint64_t{bits.y} << 32 | bits.x, .last = bits.z, .offset = bits.w};
}

// The classes' alphabets and tables, in shared memory: lanes look up different ones.
struct Classes {
  int split[kRansClasses];
  int first_step[kRansClasses];

  __device__ void Load(const RansModel& model) {
    if (threadIdx.x < kRansClasses) {
      split[threadIdx.x] = model.split[threadIdx.x];
      first_step[threadIdx.x] = model.first_step[threadIdx.x];
    }
    __syncwarp();
  }
  __device__ Symbol Find(const RansModel& model, int64_t column, int32_t value) const {
    const int of = __ldg(model.class_of_column + column);
    const TokenAlphabet alphabet(split[of]);
    const uint32_t v = TokenAlphabet::Zigzag(value);
    const uint32_t token = alphabet.TokenOf(v);
    const int bits = alphabet.RawBits(token);
    return {.step = LoadStep(model.steps + first_step[of] + token),
            .raw = v & ((1u << bits) - 1),
            .raw_bits = bits};
  }
};

// The states of a segment and its words, which go from the end of the buffer to its front.
class Encoder {
 public:
  __device__ Encoder(int precision, uint16_t* end)
      : precision_(precision), lane_(threadIdx.x), next_(end) {}

  // One value a lane that is active; all lanes call.
  __device__ void Encode(const Symbol& symbol, bool active) {
    if (__any_sync(kAllLanes, active && symbol.raw_bits > 0)) {
      const bool has_raw = active && symbol.raw_bits > 0;
      GiveWords(has_raw && state_ >> (2 * kWordBits - symbol.raw_bits) > 0);
      if (has_raw) state_ = state_ << symbol.raw_bits | symbol.raw;
    }
    GiveWords(active && state_ > symbol.step.last);
    if (!active) return;
    const auto quotient = static_cast<uint32_t>(__umul64hi(symbol.step.reciprocal, state_));
    const uint32_t frequency = (symbol.step.last >> (2 * kWordBits - precision_)) + 1;
    state_ += symbol.step.offset + quotient * ((1u << precision_) - frequency);
  }

  // The states in front of the words; where the words begin.
  __device__ const uint16_t* Finish() {
    next_ -= 2 * kLanes;
    next_[2 * lane_] = static_cast<uint16_t>(state_);
    next_[2 * lane_ + 1] = static_cast<uint16_t>(state_ >> kWordBits);
    return next_;
  }

 private:
  // Lanes' words in the order of lanes, in front of those before.
  __device__ void GiveWords(bool gives) {
    const unsigned mask = __ballot_sync(kAllLanes, gives);
    next_ -= __popc(mask);
    if (!gives) return;
    next_[__popc(mask & ((1u << lane_) - 1))] = static_cast<uint16_t>(state_);
    state_ >>= kWordBits;
  }

  const int precision_;
  const int lane_;
  uint16_t* next_;
  uint32_t state_ = kLeastState;
};

// Values go in from the last to the first, so that a decoder runs forward. Loads do not depend on
// states: the values of the next rounds are loaded before those at hand are encoded.
__global__ void __launch_bounds__(kLanes)
    EncodeKernel(const RansModel model, const int32_t* values, int64_t count,
                 int64_t segment_values, uint16_t* words, uint32_t* sizes) {
  __shared__ Classes classes;
  classes.Load(model);
  const int64_t begin = blockIdx.x * segment_values;
  const int64_t size = min(segment_values, count - begin);
  uint16_t* const end = words + (int64_t{blockIdx.x} + 1) * RansCapacity(segment_values);
  Encoder encoder(model.precision, end);
  const int64_t rounds = (size + kLanes - 1) / kLanes;
  int32_t ahead[kAhead];
  const auto load = [&](int64_t last) {
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int64_t at = (last - k) * kLanes + threadIdx.x;
      ahead[k] = last - k >= 0 && at < size ? __ldg(values + begin + at) : 0;
    }
  };
  const int64_t back = kLanes % model.cols;
  int64_t column = (begin + (rounds - 1) * kLanes + threadIdx.x) % model.cols;
  load(rounds - 1);
  for (int64_t last = rounds - 1; last >= 0; last -= kAhead) {
    Symbol symbols[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      symbols[k] = classes.Find(model, column, ahead[k]);
      column -= back;
      column += column < 0 ? model.cols : 0;
    }
    load(last - kAhead);
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (last - k < 0) break;
      encoder.Encode(symbols[k], (last - k) * kLanes + threadIdx.x < size);
    }
  }
  const uint16_t* const front = encoder.Finish();
  if (threadIdx.x == 0) sizes[blockIdx.x] = static_cast<uint32_t>(end - front);
}

// The states of a segment, and its words from the front on. What is beyond them reads as 0.
class Decoder {
 public:
  __device__ Decoder(const RansTables& tables, const uint16_t* begin, const uint16_t* end)
      : tables_(tables), next_(begin), end_(end) {
    state_ = uint32_t{next_[2 * threadIdx.x + 1]} << kWordBits | next_[2 * threadIdx.x];
    next_ += 2 * kLanes;
  }

  // One value a lane that is active; all lanes call.
  __device__ int32_t Decode(int64_t column, bool active) {
    RansToken token = {};
    if (active) {
      const uint32_t slot = state_ & ((1u << tables_.precision) - 1);
      const uint32_t of_class = __ldg(tables_.class_of_column + column);
      token = Load(__ldg(tables_.token_of_slot + (of_class << tables_.precision) + slot));
      state_ = token.frequency * (state_ >> tables_.precision) + slot - token.start;
    }
    TakeWords(active && state_ < kLeastState);
    uint32_t value = token.base;
    const bool is_escape = token.raw_bits == kRansEscape;
    escaped_ |= is_escape;
    const bool has_raw = active && token.raw_bits > 0 && !is_escape;
    if (__any_sync(kAllLanes, has_raw)) {
      if (has_raw) {
        value |= state_ & ((1u << token.raw_bits) - 1);
        state_ >>= token.raw_bits;
      }
      TakeWords(has_raw && state_ < kLeastState);
    }
    return TokenAlphabet::Unzigzag(value);
  }

  __device__ SegmentFault Finish() const {
    if (overrun_) return SegmentFault::kEndsEarly;
    if (next_ != end_) return SegmentFault::kHasWordsLeft;
    if (__any_sync(kAllLanes, escaped_)) return SegmentFault::kWrongEscapes;
    const bool right = __all_sync(kAllLanes, state_ == kLeastState);
    return right ? SegmentFault::kNone : SegmentFault::kWrongState;
  }

 private:
  __device__ RansToken Load(uint32_t index) const {
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(tables_.tokens + index));
    return {.start = bits.x, .frequency = bits.y, .base = bits.z, .raw_bits = bits.w};
  }

  // Lanes take words in their order.
  __device__ void TakeWords(bool takes) {
    const unsigned mask = __ballot_sync(kAllLanes, takes);
    const int lane = static_cast<int>(threadIdx.x);
    const uint16_t* const at = next_ + __popc(mask & ((1u << lane) - 1));
    if (takes) state_ = state_ << kWordBits | (at < end_ ? __ldg(at) : 0u);
    const int taken = __popc(mask);
    overrun_ |= end_ - next_ < taken;
    next_ = overrun_ ? end_ : next_ + taken;
  }

  const RansTables& tables_;
  const uint16_t* next_;
  const uint16_t* const end_;
  uint32_t state_;
  bool overrun_ = false;  // the same in all lanes
  bool escaped_ = false;
};

__global__ void __launch_bounds__(kLanes)
    DecodeKernel(const RansTables tables, const uint16_t* words, const uint32_t* offsets,
                 int64_t count, int64_t segment_values, int32_t* values, int* faults) {
  const int64_t begin = blockIdx.x * segment_values;
  const int64_t size = min(segment_values, count - begin);
  Decoder decoder(tables, words + offsets[2 * blockIdx.x], words + offsets[2 * blockIdx.x + 2]);
  const int64_t ahead = kLanes % tables.cols;
  int64_t column = (begin + threadIdx.x) % tables.cols;
  for (int64_t first = 0; first < size; first += kLanes) {
    const int64_t at = first + threadIdx.x;
    const int32_t value = decoder.Decode(column, at < size);
    if (at < size) values[begin + at] = value;
    column += ahead;
    column -= column >= tables.cols ? tables.cols : 0;
  }
  const SegmentFault fault = decoder.Finish();
  if (threadIdx.x == 0) faults[blockIdx.x] = static_cast<int>(fault);
}

__global__ void GatherKernel(int64_t segment_values, const uint16_t* words, const uint32_t* offsets,
                             uint16_t* to) {
  const uint32_t begin = offsets[blockIdx.x];
  const uint32_t size = offsets[blockIdx.x + 1] - begin;
  const uint16_t* const from =
      words + (int64_t{blockIdx.x} + 1) * RansCapacity(segment_values) - size;
  const uint32_t stride = gridDim.y * blockDim.x;
  for (uint32_t i = blockIdx.y * blockDim.x + threadIdx.x; i < size; i += stride) {
    to[begin + i] = from[i];
  }
}

// A warp a block of 1,024 bytes: lane l adds 64-bit lane l % 8 of every fourth stripe.
__global__ void ChecksumKernel(const ChecksumSecret secret, int64_t blocks, const uint64_t* words,
                               uint64_t* sums) {
  constexpr int kWords = 8;
  constexpr int kStripes = 16;
  const int64_t block = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  if (block >= blocks) return;
  const int lane = threadIdx.x % 32;
  const int word = lane % kWords;
  unsigned long long products = 0;
  unsigned long long plain = 0;
#pragma unroll
  for (int k = 0; k < kStripes / 4; ++k) {
    const int stripe = 4 * k + lane / kWords;
    const uint64_t value = words[block * (kWords * kStripes) + stripe * kWords + word];
    const uint64_t key = value ^ secret.words[stripe + word];
    products += (key & 0xffffffff) * (key >> 32);
    plain += value;
  }
  unsigned long long sum = products + __shfl_xor_sync(kAllLanes, plain, 1);
  sum += __shfl_xor_sync(kAllLanes, sum, 8);
  sum += __shfl_xor_sync(kAllLanes, sum, 16);
  if (lane < kWords) sums[block * kWords + word] = sum;
}

}  // namespace

cudaError_t LaunchRansEncode(cudaStream_t stream, const RansModel& model, const int32_t* values,
                             int64_t count, int64_t segment_values, uint16_t* words,
                             uint32_t* sizes) {
  if (count == 0) return cudaSuccess;
  const auto segments = static_cast<unsigned>((count + segment_values - 1) / segment_values);
  EncodeKernel<<<segments, kLanes, 0, stream>>>(model, values, count, segment_values, words, sizes);
  return cudaGetLastError();
}

cudaError_t LaunchRansDecode(cudaStream_t stream, const RansTables& tables, const uint16_t* words,
                             const uint32_t* offsets, int64_t count, int64_t segment_values,
                             int32_t* values, int* faults) {
  if (count == 0) return cudaSuccess;
  const auto segments = static_cast<unsigned>((count + segment_values - 1) / segment_values);
  DecodeKernel<<<segments, kLanes, 0, stream>>>(tables, words, offsets, count, segment_values,
                                                values, faults);
  return cudaGetLastError();
}

cudaError_t LaunchRansGather(cudaStream_t stream, int64_t segments, int64_t segment_values,
                             const uint16_t* words, const uint32_t* offsets, uint16_t* to) {
  if (segments == 0) return cudaSuccess;
  GatherKernel<<<dim3(static_cast<unsigned>(segments), 8), 256, 0, stream>>>(segment_values, words,
                                                                             offsets, to);
  return cudaGetLastError();
}

cudaError_t LaunchChecksumBlocks(cudaStream_t stream, const ChecksumSecret& secret, int64_t blocks,
                                 const void* bytes, uint64_t* sums) {
  if (blocks == 0) return cudaSuccess;
  constexpr int kThreads = 256;
  ChecksumKernel<<<static_cast<unsigned>((blocks * 32 + kThreads - 1) / kThreads), kThreads, 0,
                   stream>>>(secret, blocks, static_cast<const uint64_t*>(bytes), sums);
  return cudaGetLastError();
}

}  // namespace quantd::compute
