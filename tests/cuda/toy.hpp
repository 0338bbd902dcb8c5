// SPDX-License-Identifier: Apache-2.0
// A small model on the fake CUDA runtime, and all ranks of a pipeline that trains it: on threads, or driven by the test
// in virtual time. The engine is compiled once, in toy.cpp.
#pragma once

#include "cuda/fake_cuda.hpp"

#include "copipe/device/cuda.hpp"
#include "copipe/model/layer.hpp"
#include "copipe/model/partition.hpp"
#include "copipe/pipeline/dataset.hpp"
#include "copipe/pipeline/step_plan.hpp"

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace cuda_toy {

using copipe::cuda_device;
using copipe::tensor;
using context = copipe::context<cuda_device>;

inline constexpr std::int64_t width = 4;

/// y = x + tanh(w x), element by element.
struct wave {
    struct saved {
        tensor x, t, g;
    };
    double forward_seconds = 0, input_seconds = 0, weight_seconds = 0;
    copipe::parameter w{.name = "w", .sizes = {width}, .first = copipe::normal(0.5)};

    auto parameters() { return std::array{&w}; }
    auto forward(context& c, tensor x, saved& s) -> tensor;
    auto backward_input(context& c, tensor dy, saved& s) -> tensor;
    void backward_weight(context& c, saved& s);
};

/// Micro-batches of three rows of random numbers.
struct numbers {
    [[nodiscard]] static auto size() -> std::uint64_t { return 64; }
    static void load(std::uint64_t index, copipe::host_array& input, copipe::host_array& target) {
        copipe::counter_random const random{17, index};
        float* const x = input.resize<float>({3, width}, copipe::dtype::f32);
        float* const y = target.resize<float>({3, width}, copipe::dtype::f32);
        for (std::size_t i = 0; i < 3 * width; ++i) {
            x[i] = static_cast<float>(random.normal(2 * i));
            y[i] = static_cast<float>(random.normal(2 * i + 1));
        }
    }
};

/// The waves, and half the mean squared distance to the target.
[[nodiscard]] auto network(std::vector<wave> const& waves) -> copipe::model<cuda_device>;

struct deadlock : copipe::error {
    using error::error;
};

struct setup {
    std::size_t lookahead = 4;
    int gpus = 1; ///< over which the ranks are spread in turn
    copipe::cuda_polling polling = copipe::cuda_polling::by_program;
    std::optional<copipe::partition> cut{};
};

/// What a training step came to.
struct outcome {
    std::vector<double> losses;
    std::vector<std::vector<float>> gradients; ///< by parameter

    [[nodiscard]] auto same_bits(outcome const& other) const -> bool {
        if (losses.size() != other.losses.size() || gradients.size() != other.gradients.size()) return false;
        bool same = std::memcmp(losses.data(), other.losses.data(), losses.size() * sizeof(double)) == 0;
        for (std::size_t i = 0; i < gradients.size(); ++i)
            same = same && std::memcmp(gradients[i].data(), other.gradients[i].data(), width * sizeof(float)) == 0;
        return same;
    }
    [[nodiscard]] auto close_to(outcome const& other) const -> bool {
        for (std::size_t i = 0; i < gradients.size(); ++i)
            for (std::size_t j = 0; j < width; ++j)
                if (std::abs(gradients[i][j] - other.gradients.at(i)[j]) > 1e-6F) return false;
        return losses == other.losses;
    }
};

/// Calls that free: they throw nothing, and do their work whatever they return. And calls that ask or wait, where it is
/// for the end of a copy whose receiver knows how it went.
[[nodiscard]] inline auto is_harmless(std::string const& call) -> bool {
    return call == "cudaFreeAsync" || call == "cudaFreeHost" || call.ends_with("Destroy") || call.ends_with("Unload") ||
           call == "cudaStreamSynchronize" || call == "cudaEventQuery";
}

class pipeline {
    struct engine;
    copipe::step_plan plan_;
    std::unique_ptr<engine> engine_;

public:
    template <copipe::schedule_policy Policy>
    pipeline(fake::machine& gpus, Policy const& policy, copipe::shape size, copipe::model<cuda_device> const& layers,
             setup const& how = {})
        : pipeline(gpus, copipe::plan_step(policy, size), layers, how) {}
    pipeline(fake::machine& gpus, copipe::step_plan planned, copipe::model<cuda_device> const& layers,
             setup const& how);
    pipeline(pipeline const&) = delete;
    auto operator=(pipeline const&) -> pipeline& = delete;
    ~pipeline();

    /// A step in virtual time, on the calling thread.
    void step_by_test(std::uint64_t first = 0);
    /// A step with a thread for each rank.
    void step_by_threads(std::uint64_t first = 0);
    void recover();
    [[nodiscard]] auto result() -> outcome;

    copipe::step_plan const& plan = plan_;
    std::deque<cuda_device>& devices;
};

} // namespace cuda_toy
