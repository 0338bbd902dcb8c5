// SPDX-License-Identifier: Apache-2.0
#include "moe/all_to_all.hpp"

#include "catch.hpp"
#include "copipe/async/scope.hpp"
#include "copipe/device/host.hpp"
#include "copipe/pipeline/rank_team.hpp"

#include <cstddef>
#include <cstdint>
#include <deque>
#include <stdexcept>
#include <vector>

namespace {

using copipe::host_device;
using copipe::task;
using copipe::tensor;
using context = copipe::context<host_device>;

/// A group whose members each run one coroutine on a thread and a device of its own.
struct group {
    moe::all_to_all<host_device> net;
    copipe::rank_team team;
    std::deque<host_device> devices{};
    std::vector<host_device::stream*> streams{};

    explicit group(int members) : net(members), team(members) {
        for (int g = 0; g < members; ++g) streams.push_back(&devices.emplace_back().open_stream("compute"));
    }
    [[nodiscard]] auto context_of(int member, std::int64_t micro_batch = 0) const -> context {
        return {.stream = *streams[static_cast<std::size_t>(member)], .micro_batch = micro_batch};
    }
    /// Sends everyone `count` numbers that say from whom, to whom and in which exchange, and checks what came. The
    /// buffers are overwritten right after, as their memory's next user may do.
    auto trade(int member, std::int64_t micro_batch, std::int64_t count, int& wrong) -> task<> {
        context c = context_of(member, micro_batch);
        int const members = net.members();
        tensor const sent = c.make({members, count});
        tensor const received = c.make({members, count});
        c.stream.launch([to = sent.data(), members, count, member, micro_batch] {
            for (int g = 0; g < members; ++g)
                for (std::int64_t i = 0; i < count; ++i)
                    to[g * count + i] = static_cast<float>(member + 10 * g + 100 * micro_batch);
        });
        co_await net.exchange(c, member, {.micro_batch = micro_batch}, sent, received);
        c.stream.zero(sent.data(), sent.bytes());
        c.stream.launch([got = received.data(), members, count, member, micro_batch, &wrong] {
            for (int g = 0; g < members; ++g)
                for (std::int64_t i = 0; i < count; ++i)
                    wrong += got[g * count + i] != static_cast<float>(g + 10 * member + 100 * micro_batch);
        });
        auto const end = c.stream.record();
        co_await end.completion();
    }
};

struct accident : std::runtime_error {
    accident() : std::runtime_error("accident") {}
};

} // namespace

TEST_CASE("every member gets what each other member sent to it") {
    for (int members : {1, 2, 5}) {
        group all{members};
        std::vector<int> wrong(static_cast<std::size_t>(members));
        for (std::int64_t round = 0; round < 20; ++round) {
            all.team.run(
                [&](int g) { return all.trade(g, round % 3, 1 + 50 * round, wrong[static_cast<std::size_t>(g)]); });
        }
        REQUIRE(wrong == std::vector<int>(static_cast<std::size_t>(members)));
    }
}

TEST_CASE("exchanges that members come to in different orders are not confused") {
    group all{3};
    std::vector<int> wrong(3);
    auto const run = [&](int g) -> task<> {
        copipe::scope together{co_await copipe::this_environment{}};
        for (int i = 0; i < 12; ++i) {
            int const number = g == 0 ? i : g == 1 ? 11 - i : (5 * i) % 12;
            together.spawn(all.trade(g, number, 7, wrong[static_cast<std::size_t>(g)]));
        }
        co_await together.join();
    };
    all.team.run(run);
    REQUIRE(wrong == std::vector<int>(3));
}

TEST_CASE("an exchange of parts of different sizes moves as much as both have room for") {
    group all{2};
    std::vector<float> got(4, -1.0F);
    auto const run = [&](int g) -> task<> {
        context c = all.context_of(g);
        tensor const sent = c.make({2, g == 0 ? 3 : 1});
        tensor const received = c.make({2, 2});
        c.stream.launch([to = sent.data(), n = sent.count(), from = received.data()] {
            for (std::size_t i = 0; i < n; ++i) to[i] = static_cast<float>(i + 1);
            for (std::size_t i = 0; i < 4; ++i) from[i] = 0;
        });
        co_await all.net.exchange(c, g, {}, sent, received);
        if (g == 1) c.stream.copy(got.data(), received.data(), received.bytes());
        auto const end = c.stream.record();
        co_await end.completion();
    };
    all.team.run(run);
    REQUIRE(got == std::vector<float>{4, 5, 2, 0}); // two of member 0's three, the one of its own
}

TEST_CASE("when a member fails, nobody waits for it, and after a reset the group exchanges again") {
    group all{3};
    std::vector<int> wrong(3);
    auto const failing = [&](int g) -> task<> {
        if (g == 2) {
            all.net.abort(2);
            throw accident{};
        }
        co_await all.trade(g, 0, 5, wrong[static_cast<std::size_t>(g)]);
    };
    REQUIRE_THROWS_AS(all.team.run(failing), accident);
    REQUIRE_THROWS_AS(all.team.run([&](int g) { return all.trade(g, 1, 5, wrong[static_cast<std::size_t>(g)]); }),
                      copipe::peer_failed);
    all.net.reset();
    all.team.run([&](int g) { return all.trade(g, 0, 5, wrong[static_cast<std::size_t>(g)]); });
    REQUIRE(wrong == std::vector<int>(3));
}

TEST_CASE("an exchange that is cancelled by a sibling's failure ends the others' too") {
    group all{2};
    std::vector<int> wrong(2);
    auto const fail = []() -> task<> {
        throw accident{};
        co_return;
    };
    auto const run = [&](int g) -> task<> {
        copipe::scope together{co_await copipe::this_environment{}};
        together.spawn(all.trade(g, g, 5, wrong[static_cast<std::size_t>(g)])); // not the same one: both wait
        if (g == 1) together.spawn(fail());
        co_await together.join();
    };
    REQUIRE_THROWS_AS(all.team.run(run), accident);
    all.net.reset();
    all.team.run([&](int g) { return all.trade(g, 0, 5, wrong[static_cast<std::size_t>(g)]); });
    REQUIRE(wrong == std::vector<int>(2));
}
