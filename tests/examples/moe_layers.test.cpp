// SPDX-License-Identifier: Apache-2.0
#include "moe/layers.hpp"

#include "catch.hpp"
#include "copipe/device/host.hpp"
#include "copipe/model/stage.hpp"
#include "copipe/pipeline/rank_team.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

namespace {

using copipe::host_device;
using copipe::tensor;
using layer = moe::mixture<host_device, moe::host_work>;

struct expert {
    std::vector<double> up, down;
};

/// All members' tokens and all parameters, in one place and in double precision.
struct dense {
    moe::sizes n;
    std::vector<std::vector<double>> x; ///< by member
    std::vector<double> router;
    std::vector<expert> experts;

    /// Every expert on every token; those not chosen count nothing.
    [[nodiscard]] auto output(std::size_t g, std::vector<int>* counts = nullptr) const -> std::vector<double> {
        auto const width = static_cast<std::size_t>(n.width), hidden = static_cast<std::size_t>(n.hidden);
        std::vector<double> y = x[g];
        for (std::size_t t = 0; t < x[g].size() / width; ++t) {
            double const* const token = x[g].data() + t * width;
            std::vector<double> share;
            double sum = 0;
            for (std::size_t e = 0; e < experts.size(); ++e) {
                double logit = 0;
                for (std::size_t i = 0; i < width; ++i) logit += router[e * width + i] * token[i];
                sum += share.emplace_back(std::exp(logit));
            }
            std::vector<std::size_t> order(experts.size());
            for (std::size_t e = 0; e < order.size(); ++e) order[e] = e;
            std::sort(order.begin(), order.end(),
                      [&](auto a, auto b) { return share[a] != share[b] ? share[a] > share[b] : a < b; });
            for (std::size_t place = 0; place < order.size(); ++place) {
                expert const& own = experts[order[place]];
                bool const chosen = place < static_cast<std::size_t>(n.top);
                if (chosen && counts) ++(*counts)[order[place]];
                double const factor = chosen ? share[order[place]] / sum : 0;
                for (std::size_t k = 0; k < hidden; ++k) {
                    double h = 0;
                    for (std::size_t i = 0; i < width; ++i) h += own.up[k * width + i] * token[i];
                    for (std::size_t i = 0; i < width; ++i)
                        y[t * width + i] += factor * own.down[i * hidden + k] * std::tanh(h);
                }
            }
        }
        return y;
    }
    /// The sum over members of dy . y.
    [[nodiscard]] auto value(std::vector<std::vector<double>> const& dy) const -> double {
        double sum = 0;
        for (std::size_t g = 0; g < x.size(); ++g) {
            auto const y = output(g);
            for (std::size_t i = 0; i < y.size(); ++i) sum += dy[g][i] * y[i];
        }
        return sum;
    }
    /// The derivative of `value` by one of its numbers.
    [[nodiscard]] auto slope(double& by, std::vector<std::vector<double>> const& dy) const -> double {
        double const here = by, step = 1e-6;
        by = here + step;
        double const above = value(dy);
        by = here - step;
        double const below = value(dy);
        by = here;
        return (above - below) / (2 * step);
    }
};

auto numbers(std::uint64_t stream, std::int64_t count) -> std::vector<double> {
    copipe::counter_random const random{5, stream};
    std::vector<double> values;
    for (std::int64_t i = 0; i < count; ++i) // exactly representable as floats
        values.push_back(static_cast<double>(static_cast<float>(random.normal(static_cast<std::uint64_t>(i)))));
    return values;
}
auto in_floats(std::vector<double> const& values) -> std::vector<float> {
    std::vector<float> out;
    for (double each : values) out.push_back(static_cast<float>(each));
    return out;
}

/// One member: a stage of one mixture on a device of its own.
struct member {
    host_device dev;
    host_device::stream& compute;
    copipe::stage<host_device> stage;
    std::vector<float> x, dy, y, dx;

    member(copipe::model<host_device> const& layers, copipe::host_execution how)
        : dev(how), compute(dev.open_stream("compute")), stage(layers, 0, 1, 1, 7, compute) {
        for (copipe::parameter* each : parameters()) compute.zero(each->gradient.data(), each->gradient.bytes());
    }
    member(member const&) = delete;
    auto operator=(member const&) -> member& = delete;
    ~member() { // when a run has thrown, launched copies may still read x and dy
        try {
            compute.synchronize();
        } catch (...) {
        }
    }
    auto parameters() -> std::vector<copipe::parameter*> {
        auto const all = stage.layers().front().parameters();
        return {all.begin(), all.end()};
    }
    auto upload(copipe::context<host_device>& c, std::vector<float> const& values, std::int64_t width) -> tensor {
        tensor to = c.make({static_cast<std::int64_t>(values.size()) / width, width});
        if (!values.empty()) compute.copy(to.data(), values.data(), to.bytes());
        return to;
    }
    /// Forward, input gradient and, later, weight gradient.
    auto run(std::int64_t width) -> copipe::task<> {
        copipe::context<host_device> c{.stream = compute, .micro_batch = 3};
        tensor const out = co_await stage.forward(c, 0, upload(c, x, width));
        tensor const back = co_await stage.backward(c, 0, upload(c, dy, width), false);
        co_await stage.backward_weight(c, 0);
        y.resize(x.size());
        dx.resize(x.size());
        compute.synchronize();
        std::copy_n(out.data(), y.size(), y.begin());
        std::copy_n(back.data(), dx.size(), dx.begin());
    }
    auto values(std::string const& name, bool gradient = false) -> std::vector<double> {
        for (copipe::parameter* each : parameters()) {
            tensor const& held = gradient ? each->gradient : each->value;
            if (each->name == name) return {held.data(), held.data() + held.count()};
        }
        return {};
    }
};

void require_close(double measured, double expected) {
    REQUIRE(std::abs(measured - expected) <= 2e-5 * (1 + std::abs(expected)));
}

/// Runs a group and compares output and every gradient with the dense computation. Returns the fewest tokens of an
/// expert.
auto agree_with_dense(moe::sizes n, std::vector<std::int64_t> const& tokens,
                      copipe::host_execution how = copipe::host_execution::worker_thread) -> int {
    INFO("members " << n.members << " experts " << n.experts << " top " << n.top);
    auto const members = static_cast<int>(n.members);
    moe::all_to_all<host_device> net{members, how};
    std::deque<member> group;
    dense whole{n, {}, {}, std::vector<expert>(static_cast<std::size_t>(n.experts))};
    std::vector<std::vector<double>> dy;
    for (int g = 0; g < members; ++g) {
        copipe::model<host_device> layers;
        layers.add(layer{net, g, 4, n});
        member& own = group.emplace_back(layers, how);
        std::int64_t const count = tokens[static_cast<std::size_t>(g)] * n.width;
        whole.x.push_back(numbers(static_cast<std::uint64_t>(2 * g), count));
        dy.push_back(numbers(static_cast<std::uint64_t>(2 * g + 1), count));
        own.x = in_floats(whole.x.back());
        own.dy = in_floats(dy.back());
        whole.router = own.values("router");
        for (std::int64_t e = g * n.local(); e < (g + 1) * n.local(); ++e) {
            whole.experts[static_cast<std::size_t>(e)] = {own.values("up." + std::to_string(e)),
                                                          own.values("down." + std::to_string(e))};
        }
    }
    copipe::rank_team team{members};
    team.run([&](int g) { return group[static_cast<std::size_t>(g)].run(n.width); });

    std::vector<int> counts(whole.experts.size());
    for (std::size_t g = 0; g < group.size(); ++g) {
        auto const y = whole.output(g, &counts);
        for (std::size_t i = 0; i < y.size(); ++i) {
            require_close(static_cast<double>(group[g].y[i]), y[i]);
            require_close(static_cast<double>(group[g].dx[i]), whole.slope(whole.x[g][i], dy));
        }
        auto const router = group[g].values("router", true);
        REQUIRE(router == group[0].values("router", true));
        for (std::size_t i = 0; i < router.size(); ++i) require_close(router[i], whole.slope(whole.router[i], dy));
        for (std::int64_t e = static_cast<std::int64_t>(g) * n.local();
             e < (static_cast<std::int64_t>(g) + 1) * n.local(); ++e) {
            expert& own = whole.experts[static_cast<std::size_t>(e)];
            auto const up = group[g].values("up." + std::to_string(e), true);
            auto const down = group[g].values("down." + std::to_string(e), true);
            REQUIRE(up.size() == own.up.size());
            REQUIRE(down.size() == own.down.size());
            for (std::size_t i = 0; i < up.size(); ++i) {
                require_close(up[i], whole.slope(own.up[i], dy));
                require_close(down[i], whole.slope(own.down[i], dy));
            }
        }
    }
    return *std::min_element(counts.begin(), counts.end());
}

} // namespace

TEST_CASE("a mixture spread over members has the output and the gradients of the dense computation") {
    REQUIRE(agree_with_dense({.width = 3, .hidden = 5, .experts = 4, .members = 1, .top = 1, .tokens = 9}, {9}) >= 0);
    agree_with_dense({.width = 3, .hidden = 5, .experts = 4, .members = 2, .top = 1, .tokens = 8}, {7, 8});
    agree_with_dense({.width = 5, .hidden = 3, .experts = 6, .members = 2, .top = 2, .tokens = 11}, {11, 3});
    agree_with_dense({.width = 4, .hidden = 2, .experts = 3, .members = 3, .top = 2, .tokens = 5}, {5, 1, 2});
    agree_with_dense({.width = 2, .hidden = 2, .experts = 2, .members = 2, .top = 2, .tokens = 3}, {3, 2},
                     copipe::host_execution::inline_);
}

TEST_CASE("an expert that no token chose has no gradient, and the others theirs") {
    REQUIRE(agree_with_dense({.width = 3, .hidden = 2, .experts = 8, .members = 2, .top = 1, .tokens = 4}, {2, 1}) ==
            0);
    REQUIRE(agree_with_dense({.width = 3, .hidden = 2, .experts = 8, .members = 4, .top = 2, .tokens = 1},
                             {1, 0, 1, 0}) == 0);
}

TEST_CASE("of equally likely experts the first ones are chosen") {
    moe::sizes const n{.width = 2, .hidden = 1, .experts = 4, .top = 2, .tokens = 3};
    std::vector<float> const x{1, 2, 3, 4, 5, 6}, router(8, 0.5F);
    std::vector<float> share(12), parcels(static_cast<std::size_t>(n.parcel(3)));
    std::vector<std::int32_t> expert(6), row(6);
    moe::kernels::route{{n, 3, expert.data(), row.data()}, x.data(), router.data(), share.data(), parcels.data()}();
    REQUIRE(expert == std::vector<std::int32_t>{0, 1, 0, 1, 0, 1});
    REQUIRE(row == std::vector<std::int32_t>{0, 3, 1, 4, 2, 5});
    REQUIRE(parcels[0] == 3);
    REQUIRE(parcels[1] == 3);
    REQUIRE(parcels[2] == 0);
}

TEST_CASE("a mixture that cannot be spread over its group, or a micro-batch too large for it, is refused in words") {
    moe::all_to_all<host_device> net{2};
    REQUIRE_THROWS_AS((layer{net, 0, 1, {.width = 2, .hidden = 2, .experts = 3, .members = 2, .tokens = 1}}),
                      moe::mixture_error);
    REQUIRE_THROWS_AS((layer{net, 0, 1, {.width = 2, .hidden = 2, .experts = 3, .members = 3, .tokens = 1}}),
                      moe::mixture_error);
    REQUIRE_THROWS_AS(agree_with_dense({.width = 2, .hidden = 2, .experts = 2, .tokens = 3}, {4}), moe::mixture_error);
}
