// SPDX-License-Identifier: Apache-2.0
#include "moe/replicas.hpp"

#include "catch.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/train/trainer.hpp"
#include "moe/layers.hpp"
#include "pipeline/toy.hpp"

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

using copipe::host_device;
using layer = moe::mixture<host_device, moe::host_work>;

struct sgd {
    static constexpr std::array<std::string_view, 0> state_names{};
    static void update(copipe::host_stream& on, copipe::parameter& p, std::uint64_t, double rate, double scale) {
        on.launch([w = p.value.data(), g = p.gradient.data(), n = p.count(), f = static_cast<float>(rate * scale)] {
            for (std::size_t i = 0; i < n; ++i) w[i] -= f * g[i];
        });
    }
};

constexpr int depth = 3, members = 2, per_replica = 4;

auto network(moe::all_to_all<host_device>& net, int member) -> copipe::model<host_device> {
    copipe::model<host_device> layers;
    for (int i = 0; i < depth; ++i) {
        layers.add(
            layer{net,
                  member,
                  i,
                  {.width = toy::width, .hidden = 3, .experts = 4, .members = net.members(), .top = 2, .tokens = 5}});
    }
    layers.add(toy::distance{});
    return layers;
}

/// Every `of`-th run of `per_replica` micro-batches, 1 to 5 rows each; those of all replicas together, in turn, are the
/// whole.
struct share {
    std::uint64_t replica = 0, of = 1;
    std::uint64_t broken = ~std::uint64_t{0};

    static auto size() -> std::uint64_t { return 64; }
    void load(std::uint64_t index, copipe::host_array& input, copipe::host_array& target) const {
        if (index == broken) throw std::runtime_error("unreadable micro-batch");
        std::uint64_t const whole = (index / per_replica * of + replica) * per_replica + index % per_replica;
        toy::numbers{[](std::uint64_t i) { return static_cast<std::int64_t>(1 + i * 3 % 5); }}.load(whole, input,
                                                                                                    target);
    }
};

template <class Policy>
struct replicas {
    using trainer = copipe::trainer<Policy, host_device, copipe::static_partition, sgd>;
    moe::all_to_all<host_device> net{members};
    std::vector<std::unique_ptr<trainer>> own{};
    std::vector<trainer*> all{};

    explicit replicas(int ranks) {
        for (int g = 0; g < members; ++g) {
            own.push_back(std::make_unique<trainer>(
                network(net, g), copipe::trainer_options<host_device>{.ranks = ranks,
                                                                      .micro_batches = per_replica,
                                                                      .learning_rate = copipe::constant_rate{0.1},
                                                                      .clip_norm = 0,
                                                                      .seed = 3}));
            all.push_back(own.back().get());
        }
    }
    auto step(std::vector<share> const& data) -> double {
        double sum = 0;
        for (auto const& each : moe::step_together(net, all, data)) sum += each.loss;
        return sum;
    }
    /// Of the member that holds it.
    auto values(int at, std::string const& name) -> std::vector<float> {
        return all[static_cast<std::size_t>(at)]->values("layers." + name);
    }
};

std::vector<share> const halves{{0, 2}, {1, 2}};

/// Trains three steps and compares losses and parameters with one rank that holds all experts and sees all data.
template <class Policy>
void learns_like_one_rank(int ranks) {
    moe::all_to_all<host_device> alone{1};
    copipe::trainer<copipe::sequential, host_device, copipe::static_partition, sgd> reference{
        network(alone, 0),
        {.micro_batches = members * per_replica, // the mean over all is half the sum of both means
         .learning_rate = copipe::constant_rate{0.1 * members},
         .clip_norm = 0,
         .seed = 3}};
    replicas<Policy> group{ranks};
    for (int step = 0; step < 3; ++step) {
        double const loss = reference.step(share{}).loss;
        REQUIRE(std::abs(group.step(halves) / members - loss) < 1e-5);
    }
    for (int i = 0; i < depth; ++i) {
        std::string const prefix = std::to_string(i) + ".";
        REQUIRE(group.values(0, prefix + "router") == group.values(1, prefix + "router"));
        std::vector<std::string> names{"router"};
        for (int e = 0; e < 4; ++e) {
            names.push_back("up." + std::to_string(e));
            names.push_back("down." + std::to_string(e));
        }
        for (std::string const& name : names) {
            auto const ours = group.values(name.back() == '2' || name.back() == '3' ? 1 : 0, prefix + name);
            auto const theirs = reference.values("layers." + prefix + name);
            REQUIRE(ours.size() == theirs.size());
            for (std::size_t k = 0; k < ours.size(); ++k) {
                INFO(prefix << name << " [" << k << "]");
                REQUIRE(std::abs(ours[k] - theirs[k]) < 1e-4F);
            }
        }
    }
}

} // namespace

TEST_CASE("two replicas of a pipeline that share experts learn what one rank with all experts and all data learns") {
    learns_like_one_rank<copipe::sequential>(1);
    learns_like_one_rank<copipe::one_f_one_b>(2);
    learns_like_one_rank<copipe::dualpipe>(2);
    learns_like_one_rank<copipe::dualpipe_v>(2);
}

TEST_CASE("replicas that share experts train to the same bits from run to run") {
    std::vector<std::vector<float>> runs;
    for (int run = 0; run < 3; ++run) {
        replicas<copipe::dualpipe_v> group{2};
        for (int step = 0; step < 2; ++step) group.step(halves);
        runs.push_back(group.values(1, "0.up.3"));
        REQUIRE(runs.back() == runs.front());
    }
}

TEST_CASE("when one replica fails, all end their step, its error is thrown, and the next step can be tried") {
    replicas<copipe::dualpipe_v> group{2};
    replicas<copipe::dualpipe_v> untroubled{2};
    REQUIRE_THROWS_AS(group.step({{0, 2}, {1, 2, 2}}), copipe::chunk_error);
    REQUIRE_THROWS_AS(group.step({{0, 2, 0}, {1, 2}}), copipe::chunk_error);
    REQUIRE(group.step(halves) == untroubled.step(halves));
    REQUIRE(group.values(0, "2.down.1") == untroubled.values(0, "2.down.1"));
}
