// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"

#include "copipe/pipeline/exchange_order.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/zb_h1.hpp"
#include "copipe/schedule/zb_v.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <vector>

using namespace copipe;

namespace {

/// Ranks that run their programs at random speeds. A rank starts an action when the one before has ended and its inputs
/// have come; two neighbours move a tick only when it is their next one, its sends have been computed, and its receives
/// are for the rank's next action, or for one whose receives come later in the same lane.
class players {
public:
    players(std::vector<program> const& all, placement const& where, int micro_batches)
        : all_(all), where_(where), at_(all.size(), 0), made_(all.size()), come_(all.size()), orders_(all.size()) {
        exchange_planner const planner{all, where, micro_batches};
        for (int r = 0; r < where.ranks; ++r) orders_[static_cast<std::size_t>(r)] = planner.orders(r);
        for (auto const& each : orders_) ticks_.emplace_back(each.size(), 0);
    }

    /// True if all programs come to their end, whatever the speeds.
    auto play(unsigned seed) -> bool {
        std::mt19937 random{seed};
        for (bool any = true; any;) {
            any = false;
            std::vector<std::size_t> ranks(all_.size());
            for (std::size_t r = 0; r < ranks.size(); ++r) ranks[r] = r;
            std::shuffle(ranks.begin(), ranks.end(), random);
            for (std::size_t const r : ranks) {
                for (std::size_t p = 0; p < orders_[r].size(); ++p) any = move(r, p) || any;
                if (random() % 3 == 0 || !any) any = run(r) || any;
            }
        }
        bool done = true;
        for (std::size_t r = 0; r < all_.size(); ++r) {
            done = done && at_[r] == all_[r].size();
            for (std::size_t p = 0; p < orders_[r].size(); ++p)
                done = done && ticks_[r][p] == orders_[r][p].ticks.size();
        }
        return done;
    }

    [[nodiscard]] auto orders() const -> std::vector<std::vector<exchange_order>> const& { return orders_; }

private:
    auto run(std::size_t r) -> bool {
        if (at_[r] == all_[r].size()) return false;
        for (chunk const& each : all_[r][at_[r]].chunks()) {
            auto const in = input_of(each, where_);
            if (in && !come_[r].contains(identity_of(*in))) return false;
        }
        for (chunk const& each : all_[r][at_[r]].chunks()) {
            auto const out = output_of(each, where_);
            if (out) (crosses_ranks(*out, where_) ? made_ : come_)[r].insert(identity_of(*out));
        }
        ++at_[r];
        return true;
    }
    /// Posted: what the next action needs, and all before it in its lane.
    [[nodiscard]] auto posted(std::size_t r, exchange_order const& from, std::uint64_t identity) const -> bool {
        if (at_[r] == all_[r].size()) return false;
        bool behind = false;
        for (exchange const& each : from.ticks) {
            behind = behind || each.receive == identity;
            if (!behind || each.receive == exchange::none) continue;
            for (chunk const& needs : all_[r][at_[r]].chunks()) {
                auto const in = input_of(needs, where_);
                if (in && identity_of(*in) == each.receive) return true;
            }
        }
        return false;
    }
    auto move(std::size_t r, std::size_t p) -> bool {
        exchange_order const& own = orders_[r][p];
        auto const peer = static_cast<std::size_t>(own.peer);
        if (ticks_[r][p] == own.ticks.size() || r > peer) return false;
        std::size_t back = 0;
        while (orders_[peer][back].peer != static_cast<int>(r)) ++back;
        exchange const now = own.ticks[ticks_[r][p]];
        exchange const theirs = orders_[peer][back].ticks[ticks_[peer][back]];
        REQUIRE(now == exchange{theirs.receive, theirs.send});
        bool const up = now.send == exchange::none ||
                        (made_[r].contains(now.send) && posted(peer, orders_[peer][back], now.send));
        bool const down = now.receive == exchange::none ||
                          (made_[peer].contains(now.receive) && posted(r, own, now.receive));
        if (!up || !down) return false;
        if (now.send != exchange::none) come_[peer].insert(now.send);
        if (now.receive != exchange::none) come_[r].insert(now.receive);
        ++ticks_[r][p];
        ++ticks_[peer][back];
        return true;
    }

    std::vector<program> all_;
    placement where_;
    std::vector<std::size_t> at_;
    std::vector<std::set<std::uint64_t>> made_, come_;
    std::vector<std::vector<exchange_order>> orders_;
    std::vector<std::vector<std::size_t>> ticks_{};
};

template <class Policy>
void plays(Policy const& policy, shape size) {
    auto const all = programs(policy, size);
    std::vector<program> forwards;
    for (program const& each : all) forwards.push_back(forward_only(each));
    for (unsigned seed = 1; seed <= 10; ++seed) {
        CAPTURE(policy.name, size.ranks, size.micro_batches, seed);
        CHECK(players(all, policy.placed(size), size.micro_batches).play(seed));
        CHECK(players(forwards, policy.placed(size), size.micro_batches).play(seed));
    }
}

} // namespace

TEST_CASE("ranks that exchange in the planned order come to their end at any speed, under every kind of schedule",
          "[one_thread]") {
    for (int ranks : {2, 3, 4, 8}) {
        plays(gpipe{}, {ranks, 5});
        plays(one_f_one_b{}, {ranks, 2 * ranks + 1});
        plays(zb_h1{}, {ranks, 2 * ranks});
        plays(zb_v{}, {ranks, 2 * ranks + 2});
        plays(dualpipe_v{}, {ranks, 2 * ranks + 2});
        plays(interleaved<2>{}, {ranks, 2 * ranks});
        plays(interleaved<3>{}, {ranks, 3 * ranks});
        if (ranks % 2 == 0) plays(dualpipe{}, {ranks, 2 * ranks + 4});
    }
}

TEST_CASE("both sides list the same ticks, and every message once") {
    shape const size{4, 12};
    auto const all = programs(dualpipe{}, size);
    auto const where = dualpipe{}.placed(size);
    players const four{all, where, size.micro_batches};
    std::size_t fused = 0;
    for (int r = 0; r < size.ranks; ++r) {
        for (exchange_order const& with : four.orders()[static_cast<std::size_t>(r)]) {
            std::vector<std::uint64_t> sends;
            for (exchange const& each : with.ticks) {
                fused += each.send != exchange::none && each.receive != exchange::none;
                if (each.send != exchange::none) sends.push_back(each.send);
            }
            std::vector<std::uint64_t> expected;
            for (message const& each : sent(all[static_cast<std::size_t>(r)], where, r, with.peer))
                expected.push_back(identity_of(each));
            CHECK(sends == expected);
        }
    }
    CHECK(fused > 0);
}

TEST_CASE("a message's number has a name") {
    CHECK(name_of_message(identity_of({2, 3, 7, flow::forward})) == "the output of stage 2 for micro-batch 7");
    CHECK(name_of_message(identity_of({3, 2, 7, flow::backward})) == "the gradient of stage 3 for micro-batch 7");
    CHECK(name_of_message(std::uint64_t{0xffff} << 48U) == "a gradient that ranks share");
}
