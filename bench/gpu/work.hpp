// SPDX-License-Identifier: Apache-2.0
// What the measurements on a GPU are made of: chunks of matrix products, timing, and a table that ends up in a file.
#pragma once

#include "copipe/device/cuda.hpp"
#include "copipe/pipeline/rank_pipeline.hpp"
#include "copipe/pipeline/rank_team.hpp"
#include "copipe/transport/in_process.hpp"
#include "gpt/cuda/kernels.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace bench {

using copipe::cuda_device;
using copipe::tensor;
using context = copipe::context<cuda_device>;

/// Rows of numbers to a CSV file; every row is shown, too.
class csv {
public:
    csv(std::string const& folder, std::string const& name, std::string const& columns) : file_(folder + "/" + name) {
        file_ << columns << '\n';
        std::cout << '\n' << name << ": " << columns << '\n';
    }
    template <class... Values>
    void row(Values const&... values) {
        std::ostringstream text;
        text << std::setprecision(6);
        char const* separator = "";
        ((text << std::exchange(separator, ",") << values), ...);
        file_ << text.str() << std::endl;
        std::cout << text.str() << std::endl;
    }

private:
    std::ofstream file_;
};

/// The closing table.
struct summary {
    std::ostringstream text{};
    template <class... Values>
    void line(std::string const& what, Values const&... values) {
        text << std::left << std::setw(58) << what << std::setprecision(4);
        ((text << values), ...);
        text << '\n';
    }
};

/// Median seconds of `body`, after `warm` runs that do not count.
template <class Body>
auto median_seconds(int runs, int warm, Body body) -> double {
    std::vector<double> seconds;
    for (int i = -warm; i < runs; ++i) {
        double const begin = copipe::host_seconds();
        body();
        if (i >= 0) seconds.push_back(copipe::host_seconds() - begin);
    }
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
}

/// Buffers of one device for products of `size`, and cuBLASLt's workspace; kept while the bench runs.
class arena {
public:
    arena(cuda_device& dev, int size) : size_(size), stream_(&dev.open_stream("arena")) {
        for (tensor& each : operands_) each = tensor{*stream_->memory(), {size, size}};
        std::int64_t const rounded = gpt::bytes_in_bf16(gpt::linear_shape{size, size, size});
        workspace_ = tensor{*stream_->memory(), {(std::int64_t{1} << 23) + rounded / 4}};
        std::vector<float> values(operands_[0].count());
        copipe::counter_random const random{1, 2};
        for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(random.uniform(i) - 0.5) / 8;
        for (tensor& each : operands_) stream_->copy(each.data(), values.data(), each.bytes());
        stream_->synchronize();
    }
    /// Enqueues `count` products.
    void multiply(cudaStream_t on, int count) const {
        gpt::gpu const where{on, gpt::precision::bf16, workspace_.data<void>(), workspace_.bytes()};
        for (int i = 0; i < count; ++i)
            gpt::on_gpu::linear_forward(where, {size_, size_, size_}, operands_[0].data(), operands_[1].data(), nullptr,
                                        operands_[2].data());
    }

private:
    int size_;
    copipe::cuda_stream* stream_;
    std::array<tensor, 3> operands_{};
    tensor workspace_{};
};

/// A layer of `count` products in each of forward, input gradient and weight gradient, on its rank's arena.
struct products {
    struct saved {};
    std::vector<arena*> const* arenas;
    int count;
    static auto parameters() -> std::array<copipe::parameter*, 0> { return {}; }
    void enqueue(context& c) const {
        auto const rank = static_cast<std::size_t>(rank_of(c));
        c.stream.launch("products", [&](cudaStream_t on) { (*arenas)[rank]->multiply(on, count); });
    }
    auto forward(context& c, tensor, saved&) const -> tensor {
        enqueue(c);
        return c.make({64});
    }
    auto backward_input(context& c, tensor, saved&) const -> tensor {
        enqueue(c);
        return c.make({64});
    }
    void backward_weight(context& c, saved&) const { enqueue(c); }

    /// Which rank runs this: each has a thread of its own.
    static auto rank_of(context const&) -> int& {
        thread_local int rank = 0;
        return rank;
    }
};

/// The loss: a number, at no cost to speak of.
struct ending {
    struct saved {};
    static auto forward(context& c, tensor, saved&) -> tensor {
        tensor loss = c.make({1});
        c.stream.zero(loss.data(), 4);
        return loss;
    }
    static auto backward_input(context& c, tensor, saved&) -> tensor { return c.make({64}); }
};

struct nothing {
    static auto size() -> std::uint64_t { return 1; }
    static void load(std::uint64_t, copipe::host_array& input, copipe::host_array& target) {
        *input.resize<float>({1}, copipe::dtype::f32) = 0;
        *target.resize<float>({1}, copipe::dtype::f32) = 0;
    }
};

/// All ranks of a pipeline of `layers` layers of products on the devices given, each on a thread.
class pipeline {
public:
    template <copipe::schedule_policy Policy>
    pipeline(Policy const& policy, copipe::shape size, int layers, int count, std::vector<arena*> const& arenas,
             std::deque<cuda_device>& devices, std::size_t lookahead)
        : arenas_(arenas), plan_(copipe::plan_step(policy, size)), net_(size.ranks), team_(size.ranks) {
        copipe::model<cuda_device> model;
        for (int i = 0; i < layers; ++i) model.add(products{&arenas_, count});
        model.add(ending{});
        int const stages = plan_.where.model_stages();
        std::vector<int> bounds;
        for (int s = 0; s < stages; ++s) bounds.push_back(s * layers / stages);
        bounds.push_back(layers + 1);
        cut_ = std::make_unique<copipe::partition>(copipe::partition::given(bounds, layers + 1));
        for (int r = 0; r < size.ranks; ++r)
            ranks_.emplace_back(plan_, *cut_, model, r, devices[static_cast<std::size_t>(r)], net_.connect(r),
                                copipe::pipeline_options{.lookahead = lookahead});
    }
    /// One step; ends when the GPU has.
    void step() {
        copipe::batch const from{copipe::dataset_ref{data_}};
        team_.run([&](int r) { return one(static_cast<std::size_t>(r), from); });
    }

private:
    auto one(std::size_t r, copipe::batch const& from) -> copipe::task<> {
        context const any{.stream = ranks_[r].compute_stream()};
        products::rank_of(any) = static_cast<int>(r);
        co_await ranks_[r].run(from, true);
    }
    std::vector<arena*> arenas_;
    copipe::step_plan plan_;
    copipe::in_process<cuda_device> net_;
    copipe::rank_team team_;
    nothing data_{};
    std::unique_ptr<copipe::partition> cut_{};
    std::deque<copipe::rank_pipeline<cuda_device, copipe::in_process<cuda_device>::endpoint>> ranks_{};
};

} // namespace bench
