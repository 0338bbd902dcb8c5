// SPDX-License-Identifier: Apache-2.0
// What a pipeline computes: the numbers of plain training, whatever the schedule, the threads and the timing.
#include "catch.hpp"
#include "pipeline/fixture.hpp"

#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/schedule/zb_h1.hpp"
#include "copipe/schedule/zb_v.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using namespace copipe;
using toy::host_device;

namespace {

constexpr int depth = 8;

auto reference(int micro_batches, bool tied = false, toy::numbers const& data = {}) -> toy::outcome {
    toy::setup const how{.threads = rank_threads::calling_thread, .execution = host_execution::inline_};
    toy::pipeline plain{sequential{}, {1, micro_batches}, toy::network(depth, tied), how};
    return plain.train(data);
}

/// Every way of driving ranks and streams.
auto ways() -> std::vector<toy::setup> {
    std::vector<toy::setup> all;
    for (auto const threads : {rank_threads::calling_thread, rank_threads::one_each}) {
        for (auto const execution : {host_execution::inline_, host_execution::worker_thread}) {
            all.push_back({.threads = threads, .execution = execution});
        }
    }
    return all;
}

/// Runs `check(policy name, ranks, outcome)` for every policy whose numbers are those of plain training.
template <class Make, class Check>
void for_exact_policies(int micro_batches, Make make, Check check) {
    auto const at = [&](auto const& policy, int ranks) {
        check(std::string(policy.name), ranks, make(policy, shape{ranks, micro_batches}));
    };
    for (int ranks : {1, 2, 4}) {
        at(gpipe{}, ranks);
        at(one_f_one_b{}, ranks);
        at(dualpipe_v{}, ranks);
    }
    at(zb_h1{}, 4);
    at(zb_v{}, 4);
    at(interleaved{}, 4);
}

/// A dense layer whose launches take a time that differs from rank to rank and from call to call.
struct slow_dense : toy::dense {
    using toy::dense::dense;
    int seed = 0;
    static void nap(copipe::context<host_device>& c, int salt) {
        int const microseconds = static_cast<int>(counter_random{5, static_cast<std::uint64_t>(salt)}.bits(
                                     static_cast<std::uint64_t>(c.micro_batch)) % 400);
        c.stream.launch([microseconds] { std::this_thread::sleep_for(std::chrono::microseconds(microseconds)); });
    }
    auto forward(copipe::context<host_device>& c, tensor x, saved& s) -> tensor {
        nap(c, seed);
        return toy::dense::forward(c, x, s);
    }
    auto backward_input(copipe::context<host_device>& c, tensor dy, saved& s) -> tensor {
        nap(c, seed + 100);
        return toy::dense::backward_input(c, dy, s);
    }
    void backward_weight(copipe::context<host_device>& c, saved& s) {
        nap(c, seed + 200);
        toy::dense::backward_weight(c, s);
    }
};

/// Plain training in double precision, written without any of the engine: the weighted mean loss.
auto loss_in_double(std::vector<std::vector<double>> const& weights, toy::numbers const& data, int micro_batches) {
    double sum = 0, total = 0;
    for (int m = 0; m < micro_batches; ++m) {
        host_array input, target;
        data.load(static_cast<std::uint64_t>(m), input, target);
        auto const rows = static_cast<std::size_t>(input.sizes()[0]);
        constexpr auto w = static_cast<std::size_t>(toy::width);
        std::vector<double> x(input.data<float>(), input.data<float>() + rows * w);
        for (auto const& layer : weights) {
            std::vector<double> y = x;
            for (std::size_t r = 0; r < rows; ++r) {
                for (std::size_t j = 0; j < w; ++j) {
                    double dot = 0;
                    for (std::size_t i = 0; i < w; ++i) dot += x[r * w + i] * layer[i * w + j];
                    y[r * w + j] += std::tanh(dot);
                }
            }
            x = y;
        }
        double squares = 0;
        for (std::size_t i = 0; i < x.size(); ++i) {
            squares += std::pow(x[i] - static_cast<double>(target.data<float>()[i]), 2);
        }
        double const weight = static_cast<double>(rows);
        sum += weight * squares / (2 * static_cast<double>(x.size()));
        total += weight;
    }
    return sum / total;
}

} // namespace

TEST_CASE("losses and gradients are those of plain training to the bit, whatever the schedule and the threads") {
    for (bool const tied : {false, true}) {
        toy::outcome const expected = reference(16, tied);
        for (toy::setup const& how : ways()) {
            auto const make = [&](auto const& policy, shape size) {
                return toy::pipeline{policy, size, toy::network(depth, tied), how}.train(toy::numbers{});
            };
            for_exact_policies(16, make, [&](std::string const& name, int ranks, toy::outcome const& got) {
                CAPTURE(name, ranks, tied, how.threads, how.execution);
                CHECK(got.same_bits(expected));
            });
        }
    }
}

TEST_CASE("under dualpipe the gradients are those of plain training within rounding, and the same bits every time") {
    for (bool const tied : {false, true}) {
        toy::outcome const expected = reference(16, tied);
        for (int const ranks : {2, 4}) {
            std::vector<toy::outcome> runs;
            for (toy::setup const& how : ways()) {
                toy::pipeline all{dualpipe{}, {ranks, 16}, toy::network(depth, tied), how};
                for (int i = 0; i < 2; ++i) runs.push_back(all.train(toy::numbers{}));
            }
            for (toy::outcome const& each : runs) {
                CHECK(each.same_bits(runs.front()));
                CHECK(each.losses == expected.losses);
                CHECK(each.distance_to(expected) < 1e-5);
            }
        }
    }
}

TEST_CASE("how far the host runs ahead does not show in the numbers") {
    toy::outcome const expected = reference(8);
    toy::outcome const dual = toy::pipeline{dualpipe{}, {4, 8}, toy::network(depth)}.train(toy::numbers{});
    for (std::size_t const lookahead : std::vector<std::size_t>{1, 2, 3, 4, ~std::size_t{0}}) {
        for (auto const execution : {host_execution::inline_, host_execution::worker_thread}) {
            toy::setup how{.execution = execution};
            how.options.lookahead = lookahead;
            CAPTURE(lookahead, execution);
            auto const train = [&](auto const& policy) {
                return toy::pipeline{policy, {4, 8}, toy::network(depth), how}.train(toy::numbers{});
            };
            CHECK(train(one_f_one_b{}).same_bits(expected));
            CHECK(train(dualpipe_v{}).same_bits(expected));
            CHECK(train(dualpipe{}).same_bits(dual));
        }
    }
}

TEST_CASE("where the model is cut does not show in the numbers") {
    toy::outcome const expected = reference(8);
    for (auto const& bounds : {std::vector<int>{0, 1, 2, 3, 9}, {0, 6, 7, 8, 9}, {0, 2, 3, 8, 9}}) {
        toy::setup const how{.cut = partition::given(bounds, depth + 1)};
        CHECK(toy::pipeline{one_f_one_b{}, {4, 8}, toy::network(depth), how}.train(toy::numbers{}).same_bits(expected));
        CHECK(toy::pipeline{dualpipe_v{}, {2, 8}, toy::network(depth), how}.train(toy::numbers{}).same_bits(expected));
    }
}

TEST_CASE("a slow rank, a slow kernel or a late message does not show in the numbers") {
    model<host_device> slow;
    for (int i = 0; i < depth; ++i) {
        slow_dense layer;
        layer.seed = i;
        slow.add(layer);
    }
    slow.add(toy::distance{});
    toy::outcome const expected = reference(8);
    toy::outcome const dual = toy::pipeline{dualpipe{}, {4, 8}, toy::network(depth)}.train(toy::numbers{});
    for (std::size_t const lookahead : {1U, 6U}) {
        toy::setup how;
        how.options.lookahead = lookahead;
        CHECK(toy::pipeline{one_f_one_b{}, {4, 8}, slow, how}.train(toy::numbers{}).same_bits(expected));
        CHECK(toy::pipeline{dualpipe_v{}, {4, 8}, slow, how}.train(toy::numbers{}).same_bits(expected));
        CHECK(toy::pipeline{dualpipe{}, {4, 8}, slow, how}.train(toy::numbers{}).same_bits(dual));
    }
}

TEST_CASE("micro-batches of different sizes are weighted as in plain training") {
    toy::numbers const data{.rows = [](std::uint64_t index) { return static_cast<std::int64_t>(1 + index * 7 % 5); }};
    toy::outcome const expected = reference(16, true, data);
    for (auto const execution : {host_execution::inline_, host_execution::worker_thread}) {
        toy::setup const how{.execution = execution};
        auto const make = [&](auto const& policy, shape size) {
            return toy::pipeline{policy, size, toy::network(depth, true), how}.train(data);
        };
        for_exact_policies(16, make, [&](std::string const& name, int ranks, toy::outcome const& got) {
            CAPTURE(name, ranks);
            CHECK(got.same_bits(expected));
        });
        CHECK(make(dualpipe{}, {4, 16}).distance_to(expected) < 1e-5);
        CHECK(make(dualpipe{}, {4, 16}).losses == expected.losses);
    }
}

TEST_CASE("step after step on other data, and evaluations in between, give the numbers of plain training") {
    toy::setup const inline_one{.threads = rank_threads::calling_thread, .execution = host_execution::inline_};
    toy::pipeline plain{sequential{}, {1, 8}, toy::network(depth), inline_one};
    toy::pipeline piped{dualpipe_v{}, {2, 8}, toy::network(depth)};
    toy::numbers const data;
    for (std::uint64_t step = 0; step < 6; ++step) {
        auto const expected = plain.train(data, step * 8);
        CHECK(piped.train(data, step * 8).same_bits(expected));
        CHECK(piped.evaluate(data, step * 8) == expected.losses);
        CHECK(piped.evaluate(data, 100 + step) == plain.evaluate(data, 100 + step));
    }
}

TEST_CASE("an evaluation has the losses of a training step, under every schedule") {
    toy::outcome const expected = reference(8);
    auto const make = [&](auto const& policy, shape size) {
        return toy::pipeline{policy, size, toy::network(depth)}.evaluate(toy::numbers{});
    };
    for_exact_policies(8, make, [&](std::string const& name, int ranks, std::vector<double> const& got) {
        CAPTURE(name, ranks);
        CHECK(got == expected.losses);
    });
    CHECK(make(dualpipe{}, {4, 8}) == expected.losses);
}

TEST_CASE("the gradients of a pipelined step are the derivatives of its loss, also of tied parameters") {
    constexpr int layers = 4;
    toy::numbers const data{.rows = [](std::uint64_t index) { return static_cast<std::int64_t>(1 + index % 3); }};
    for (bool const tied : {false, true}) {
        toy::setup const how{.cut = partition::given({0, 1, 3, 4, 5}, layers + 1)};
        toy::pipeline piped{dualpipe{}, {4, 8}, toy::network(layers, tied), how};
        toy::outcome const got = piped.train(data);
        std::vector<std::vector<double>> weights;
        std::vector<std::size_t> group_of;
        for (int layer = 0; layer < layers; ++layer) {
            for (std::size_t g = 0; g < piped.groups.size(); ++g) {
                for (parameter_use const& use : piped.groups[g].uses) {
                    if (use.layer != layer || weights.size() > static_cast<std::size_t>(layer)) continue;
                    auto const values = piped.value(use);
                    weights.emplace_back(values.begin(), values.end());
                    group_of.push_back(g);
                }
            }
        }
        REQUIRE(weights.size() == layers);
        REQUIRE(got.gradients.size() == (tied ? 3 : 4));
        CHECK(got.loss() == Approx(loss_in_double(weights, data, 8)).epsilon(1e-5));
        for (std::size_t g = 0; g < got.gradients.size(); ++g) {
            for (std::size_t i = 0; i < got.gradients[g].size(); ++i) {
                auto const shifted = [&](double by) {
                    auto moved = weights;
                    for (std::size_t layer = 0; layer < layers; ++layer) {
                        if (group_of[layer] == g) moved[layer][i] += by;
                    }
                    return loss_in_double(moved, data, 8);
                };
                double const slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
                CHECK(static_cast<double>(got.gradients[g][i]) == Approx(slope).epsilon(2e-4).margin(2e-6));
            }
        }
    }
}

TEST_CASE("after a step and after an evaluation only the parameters' memory is in use, step after step") {
    for (auto const execution : {host_execution::inline_, host_execution::worker_thread}) {
        toy::setup const how{.execution = execution};
        toy::pipeline piped{dualpipe{}, {4, 8}, toy::network(depth, true), how};
        auto const before = piped.memory_in_use();
        for (std::uint64_t step = 0; step < 4; ++step) {
            piped.run_step(toy::numbers{}, step);
            CHECK(piped.memory_in_use() == before);
            static_cast<void>(piped.evaluate(toy::numbers{}));
            CHECK(piped.memory_in_use() == before);
        }
    }
}

TEST_CASE("a pipeline holds no more micro-batches than its schedule says") {
    // On one thread: how long a sent message is held depends on its receiver.
    toy::setup how{.threads = rank_threads::calling_thread, .execution = host_execution::inline_};
    how.options.lookahead = 1;
    auto const peak = [&](auto const& policy, int micro_batches) {
        toy::pipeline piped{policy, {4, micro_batches}, toy::network(11), how};
        std::size_t const before = piped.devices.front().memory_in_use();
        piped.run_step(toy::numbers{});
        return piped.devices.front().peak_memory() - before;
    };
    CHECK(peak(gpipe{}, 32) > 3 * peak(gpipe{}, 8)); // all at once
    CHECK(peak(one_f_one_b{}, 32) == peak(one_f_one_b{}, 8));
    CHECK(peak(one_f_one_b{}, 32) < peak(gpipe{}, 32) / 4);
}

TEST_CASE("a stage may hand on its very input, any element type and up to five dimensions") {
    struct pass {
        struct saved {};
        static auto forward(context<host_device>&, tensor x, saved&) -> tensor { return x; }
        static auto backward_input(context<host_device>&, tensor dy, saved&) -> tensor { return dy; }
    };
    struct reshape_to_five {
        struct saved {};
        static auto forward(context<host_device>&, tensor x, saved&) -> tensor {
            return x.reshaped({x.size(0), 1, toy::width, 1, 1});
        }
        static auto backward_input(context<host_device>&, tensor dy, saved&) -> tensor {
            if (dy.sizes().rank() != 5) throw std::runtime_error("a gradient of another shape");
            return dy.reshaped({dy.size(0), toy::width});
        }
    };
    struct reshape_to_two {
        struct saved {};
        static auto forward(context<host_device>&, tensor x, saved&) -> tensor {
            if (x.sizes().rank() != 5) throw std::runtime_error("an input of another shape");
            return x.reshaped({x.size(0), toy::width});
        }
        static auto backward_input(context<host_device>&, tensor dy, saved&) -> tensor {
            return dy.reshaped({dy.size(0), 1, toy::width, 1, 1});
        }
    };
    auto const network = [] {
        model<host_device> layers;
        layers.add(toy::dense{}).add(reshape_to_five{}).add(pass{}).add(pass{}).add(reshape_to_two{}).add(toy::dense{});
        return layers.add(pass{}).add(toy::distance{});
    };
    toy::numbers const data{.rows = [](std::uint64_t index) { return static_cast<std::int64_t>(1 + index % 4); }};
    toy::setup const inline_one{.threads = rank_threads::calling_thread, .execution = host_execution::inline_};
    toy::outcome const expected = toy::pipeline{sequential{}, {1, 8}, network(), inline_one}.train(data);
    toy::setup const single{.cut = partition::given({0, 2, 3, 7, 8}, 8)};
    CHECK(toy::pipeline{one_f_one_b{}, {4, 8}, network(), single}.train(data).same_bits(expected));
    CHECK(toy::pipeline{dualpipe_v{}, {4, 8}, network()}.train(data).same_bits(expected));
    CHECK(toy::pipeline{dualpipe{}, {4, 8}, network(), single}.train(data).distance_to(expected) < 1e-5);
}

TEST_CASE("a dataset without targets leaves them alone, and the last layer is given none") {
    struct to_zero { // half the mean square, as if the target were 0
        struct saved {
            tensor x;
        };
        static auto forward(context<host_device>& c, tensor x, saved& s) -> tensor {
            if (c.target.count() != 0) throw std::runtime_error("a target from nowhere");
            s.x = x;
            tensor loss = c.make({1});
            c.stream.launch([in = x.data(), out = loss.data(), n = x.count()] {
                *out = 0;
                for (std::size_t i = 0; i < n; ++i) *out += in[i] * in[i] / (2 * static_cast<float>(n));
            });
            return loss;
        }
        static auto backward_input(context<host_device>& c, tensor, saved& s) -> tensor {
            tensor dx = c.make(s.x.sizes());
            c.stream.zero(dx.data(), dx.bytes());
            return dx;
        }
    };
    struct inputs_only {
        static auto size() -> std::uint64_t { return 8; }
        static void load(std::uint64_t index, copipe::host_array& input, copipe::host_array&) {
            float* const x = input.resize<float>({2, toy::width}, copipe::dtype::f32);
            std::fill_n(x, 2 * toy::width, static_cast<float>(index + 1));
        }
    };
    model<host_device> layers;
    layers.add(toy::dense{}).add(toy::dense{}).add(to_zero{});
    toy::outcome const expected = toy::pipeline{sequential{}, {1, 4}, layers}.train(inputs_only{});
    CHECK(toy::pipeline{one_f_one_b{}, {2, 4}, layers}.train(inputs_only{}).same_bits(expected));
}

TEST_CASE("tensors of integers cross ranks as integers") {
    struct to_integers {
        struct saved {};
        static auto forward(context<host_device>& c, tensor x, saved&) -> tensor {
            tensor y = c.make({x.size(0)}, dtype::i32);
            c.stream.launch([to = y.data<std::int32_t>(), rows = x.size(0)] {
                for (std::int64_t i = 0; i < rows; ++i) to[i] = static_cast<std::int32_t>(100 + i);
            });
            return y;
        }
        static auto backward_input(context<host_device>&, tensor dy, saved&) -> tensor {
            if (dy.type() != dtype::u8) throw std::runtime_error("a gradient of another type");
            return {};
        }
    };
    struct sum_of_integers {
        struct saved {
            std::int64_t rows;
        };
        static auto forward(context<host_device>& c, tensor x, saved& s) -> tensor {
            if (x.type() != dtype::i32 || x.sizes().rank() != 1) throw std::runtime_error("an input of another type");
            s.rows = x.size(0);
            tensor loss = c.make({1});
            c.stream.launch([from = x.data<std::int32_t>(), to = loss.data(), rows = x.size(0)] {
                *to = 0;
                for (std::int64_t i = 0; i < rows; ++i) *to += static_cast<float>(from[i]);
            });
            return loss;
        }
        static auto backward_input(context<host_device>& c, tensor, saved& s) -> tensor {
            return c.make({s.rows}, dtype::u8);
        }
    };
    model<host_device> layers;
    layers.add(to_integers{}).add(sum_of_integers{});
    toy::pipeline piped{one_f_one_b{}, {2, 4}, layers};
    piped.run_step(toy::numbers{});
    CHECK(piped.losses() == std::vector<double>(4, (100 + 101 + 102) / 4.0));
}
