// SPDX-License-Identifier: Apache-2.0
// Sums of device memory over some of the ranks, on communicators of their own, on the fake NCCL.
#include "catch.hpp"
#include "nccl/toy.hpp"
#include "says.hpp"

#include "copipe/schedule/data_parallel.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/one_f_one_b.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

using namespace copipe;
using namespace std::chrono_literals;
using fake::drive;
using nccl_toy::connected;

namespace {

/// Device memory with some numbers.
struct array {
    cuda_stream* stream;
    std::size_t count;
    cuda_block memory;

    array(cuda_stream& on, std::vector<float> const& values)
        : stream(&on), count(values.size()), memory(take_block(*on.memory(), (count + 1) * sizeof(float))) {
        on.copy(memory.get(), values.data(), count * sizeof(float));
    }
    [[nodiscard]] auto part() const -> summand { return {reinterpret_cast<float*>(memory.get()), count}; }
    [[nodiscard]] auto values() const -> std::vector<float> {
        std::vector<float> read(count);
        stream->copy(read.data(), memory.get(), count * sizeof(float));
        stream->synchronize();
        return read;
    }
};

/// Numbers of very different sizes: another order of addition shows.
auto uneven(std::size_t count, std::mt19937& random) -> std::vector<float> {
    std::vector<float> all(count);
    for (float& each : all) {
        float const size = std::ldexp(1.0F, static_cast<int>(random() % 40));
        each = size * (static_cast<float>(random() % 2001) - 1000);
    }
    return all;
}

/// The numbers of the ranks in `order`, added by the host.
auto added(std::vector<std::vector<float>> const& of_ranks, std::vector<int> const& order) -> std::vector<float> {
    std::vector<float> sum(of_ranks.front().size());
    for (std::size_t i = 0; i < sum.size(); ++i) {
        sum[i] = of_ranks[static_cast<std::size_t>(order[0])][i];
        for (std::size_t k = 1; k < order.size(); ++k) sum[i] += of_ranks[static_cast<std::size_t>(order[k])][i];
    }
    return sum;
}

} // namespace

TEST_CASE("a sum over ranks has the bits of an addition in the order asked for, on every rank, whatever the counts") {
    std::mt19937 random{7};
    for (int const ranks : {2, 3, 4, 7}) {
        std::vector<int> order(static_cast<std::size_t>(ranks));
        std::iota(order.begin(), order.end(), 0);
        connected all{{.summing = {order}}, order};
        for (int round = 0; round < 3; ++round) {
            std::vector<std::size_t> const counts{1, 64, 0, 5, 1000, 3};
            std::vector<std::vector<std::vector<float>>> values(counts.size()); // by part and rank
            std::vector<std::vector<array>> held(static_cast<std::size_t>(ranks));
            for (std::size_t p = 0; p < counts.size(); ++p) {
                for (std::size_t r = 0; r < held.size(); ++r) {
                    values[p].push_back(uneven(counts[p], random));
                    held[r].emplace_back(*all.streams[r], values[p][r]);
                }
            }
            for (std::size_t r = 0; r < held.size(); ++r) {
                std::vector<summand> parts;
                for (array const& each : held[r]) parts.push_back(each.part());
                REQUIRE(all.sum(r, order, parts));
            }
            for (std::size_t p = 0; p < counts.size(); ++p)
                for (std::size_t r = 0; r < held.size(); ++r) {
                    CAPTURE(ranks, round, counts[p], r);
                    REQUIRE(held[r][p].values() == added(values[p], order));
                }
            std::shuffle(order.begin(), order.end(), random);
        }
    }
}

TEST_CASE("a rank may sum with some ranks and with others, each on a communicator of its own") {
    connected all{{.summing = {{0, 1, 2}, {2, 3}}}, {0, 1, 2, 3}};
    std::vector<array> held;
    for (std::size_t r = 0; r < 4; ++r)
        held.emplace_back(*all.streams[r], std::vector<float>{static_cast<float>(r) + 1});
    auto const sum = [&](std::size_t r, std::vector<int> const& over) {
        summand const part = held[r].part();
        return all.sum(r, over, {&part, 1});
    };
    for (std::size_t r : {0U, 1U, 2U}) CHECK(sum(r, {0, 1, 2}));
    for (std::size_t r : {3U, 2U}) CHECK(sum(r, {3, 2}));
    CHECK(!sum(0, {0, 1}));
    CHECK(!sum(3, {0, 1, 2}));
    CHECK(held[0].values() == std::vector<float>{6});
    CHECK(held[2].values() == std::vector<float>{10});
    CHECK(held[3].values() == std::vector<float>{10});
}

TEST_CASE("a sum waits for its other ranks, which is seen, and goes on when they have come") {
    connected all{{.summing = {{0, 1}}}, {0, 1}};
    array const a{*all.streams[0], {1}};
    array const b{*all.streams[1], {2}};
    std::vector<int> const both{0, 1};
    summand const first = a.part();
    CHECK(all.sum(0, both, {&first, 1}));
    while (all.gpus.advance()) {}
    CHECK_THAT(all.gpus.stuck(), says("cannot do 'NCCL: all-reduce'"));
    summand const second = b.part();
    CHECK(all.sum(1, both, {&second, 1}));
    CHECK(a.values() == std::vector<float>{3});
    CHECK(all.gpus.stuck() == "");
}

namespace {

auto waves(int count) { return cuda_toy::network(std::vector<cuda_toy::wave>(static_cast<std::size_t>(count))); }

template <class Policy>
auto piped(fake::machine& gpus, Policy const& policy, shape size, nccl_toy::setup const& how = {}) {
    int const stages = policy.placed(size).model_stages();
    return nccl_toy::pipeline{gpus, policy, size, waves(2 * stages), partition::even(2 * stages + 1, stages), how};
}

template <class Policy>
void check_bits(Policy const& policy, shape size) {
    CAPTURE(policy.name, size.ranks);
    int const stages = policy.placed(size).model_stages();
    cuda_toy::outcome const expected = [&] {
        fake::machine gpus{drive::by_test};
        cuda_toy::pipeline by_messages{gpus, policy, size, waves(2 * stages)};
        by_messages.step_by_test();
        return by_messages.result();
    }();
    fake::machine gpus{drive::by_test, size.ranks};
    fake::nccl_library nccl;
    auto over_nccl = piped(gpus, policy, size);
    for (int step = 0; step < 2; ++step) {
        std::uint64_t const before = nccl.reduced();
        over_nccl.step_by_test();
        REQUIRE(over_nccl.result().same_bits(expected));
        bool const by_pairs = over_nccl.plan.where.stages() == 2 * stages;
        if (by_pairs) REQUIRE(nccl.reduced() - before == static_cast<std::uint64_t>(2 * stages)); // each parameter once
        else REQUIRE(nccl.reduced() == before);
    }
}

} // namespace

TEST_CASE("gradients that ranks share are summed by collectives, to the bits of every other transport",
          "[one_thread]") {
    check_bits(dualpipe{}, {2, 4});
    check_bits(dualpipe{}, {4, 8});
    check_bits(dualpipe{}, {6, 12});
    check_bits(dualpipe{}, {8, 16});
    check_bits(data_parallel<one_f_one_b>{}, {4, 8});
    check_bits(data_parallel<one_f_one_b>{3}, {3, 6});
    check_bits(data_parallel<one_f_one_b>{3}, {6, 6});
    check_bits(data_parallel<dualpipe>{3}, {6, 12});
}

TEST_CASE("a rank that never comes to the sum of gradients is named, every other ends, and the next step is right") {
    auto const check = [](auto const& policy, shape size, int absent, std::string const& said) {
        fake::machine gpus{drive::by_test, size.ranks};
        fake::nccl_library nccl;
        {
            auto all = piped(gpus, policy, size, {.deadline = 0ms}); // asked only when nothing can move
            all.step_by_test();
            auto const expected = all.result();
            all.how.absent_from_sum = absent;
            CHECK_THROWS_WITH(all.step_by_test(), says(said) && says("nothing has moved"));
            all.how.absent_from_sum = -1;
            all.recover();
            all.step_by_test();
            CHECK(all.result().same_bits(expected));
        }
        CHECK(gpus.leaks() == "");
        CHECK(nccl.leaks() == "");
    };
    check(dualpipe{}, {4, 8}, 3, "is missing rank 3: the sum of gradients over the ranks 0, 3 is under way");
    check(data_parallel<one_f_one_b>{3}, {3, 6}, 1,
          "is missing rank 1: the sum of gradients over the ranks 0, 1, 2 is under way");
}
