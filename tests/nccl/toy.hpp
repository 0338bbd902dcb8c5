// SPDX-License-Identifier: Apache-2.0
// All ranks of a pipeline on fake GPUs, connected by the NCCL transport on the fake NCCL: on threads, or driven by the
// test in virtual time.
#pragma once

#include "cuda/toy.hpp"
#include "nccl/fake_nccl.hpp"

#include "copipe/pipeline/exchange_order.hpp"
#include "copipe/transport/nccl.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace nccl_toy {

using copipe::cuda_device;
using cuda_toy::outcome;
using hub = copipe::nccl<>;

struct setup {
    copipe::nccl_mode mode = copipe::nccl_mode::strict;
    std::size_t lookahead = 4;
    bool by_test = true;
    std::chrono::milliseconds deadline{20'000};
    /// What the ranks follow, if not the planned orders.
    std::function<void(std::vector<copipe::step_orders>&)> spoil{};
    int silent_rank = -1;     ///< does not run its steps
    int absent_from_sum = -1; ///< ends its step before gradients are summed
};

class pipeline {
public:
    template <copipe::schedule_policy Policy>
    pipeline(fake::machine& gpus, Policy const& policy, copipe::shape size, copipe::model<cuda_device> const& layers,
             copipe::partition const& division, setup const& options = {})
        : plan(copipe::plan_step(policy, size)),
          cut(division),
          groups(copipe::parameter_groups(layers, cut, plan.where)),
          orders(copipe::orders_of(plan)),
          how(options),
          net(size.ranks, copipe::traffic_of(plan.where, groups),
              {.mode = how.mode,
               .deadline = how.deadline,
               .poll = std::chrono::milliseconds{2},
               .watch = how.by_test ? copipe::nccl_watch::by_program : copipe::nccl_watch::own_thread,
               .name = copipe::name_of_message}),
          exec(gpus) {
        exec.watch = [this] {
            net.watch(); // sees what has moved, ...
            net.watch(); // ... and that nothing has since
        };
        if (how.spoil) how.spoil(orders);
        for (int r = 0; r < size.ranks; ++r) {
            auto const polling = how.by_test ? copipe::cuda_polling::by_program : copipe::cuda_polling::own_thread;
            exec.serve(
                devices.emplace_back(copipe::cuda_options{.gpu = r, .polling = polling, .make_stream = {}}));
        }
        std::vector<hub::endpoint> ends;
        for (int r = 0; r < size.ranks; ++r) ends.push_back(net.connect(r, devices[static_cast<std::size_t>(r)]));
        for (int r = 0; r < size.ranks; ++r) {
            ranks.emplace_back(plan, cut, layers, r, devices[static_cast<std::size_t>(r)],
                               std::move(ends[static_cast<std::size_t>(r)]),
                               copipe::pipeline_options{.lookahead = how.lookahead, .seed = 3, .listener = {}});
            reductions.emplace_back(ranks.back(), groups);
        }
    }

    /// A step in virtual time, on the calling thread.
    void step_by_test(bool training = true) {
        exec.on_deadlock = [this] { ranks.front().endpoint().abort(); };
        std::vector<std::exception_ptr> thrown(ranks.size());
        copipe::run(exec, all_ranks(training, thrown));
        if (!exec.stuck().empty()) throw cuda_toy::deadlock(exec.stuck());
        std::exception_ptr cause; // not merely the echo of another rank's
        for (auto const& each : thrown) {
            try {
                if (each) std::rethrow_exception(each);
            } catch (copipe::peer_failed const&) {
                if (!cause) cause = each;
            } catch (...) {
                cause = each;
            }
        }
        if (cause) std::rethrow_exception(cause);
    }
    /// A step with a thread for each rank; what each threw.
    auto step_by_threads(copipe::rank_team& team) -> std::vector<std::string> {
        std::vector<std::string> thrown(ranks.size());
        team.run([&](int r) { return caught(static_cast<std::size_t>(r), thrown); });
        return thrown;
    }
    void recover() {
        for (auto& each : ranks) each.recover();
    }
    [[nodiscard]] auto result() -> outcome { return cuda_toy::outcome_of(plan, groups, ranks, reductions); }

    copipe::step_plan plan;
    copipe::partition cut;
    std::vector<copipe::parameter_group> groups;
    std::vector<copipe::step_orders> orders;
    setup how;
    cuda_toy::numbers data{};
    hub net;
    cuda_toy::driver exec;
    std::deque<cuda_device> devices{};
    std::deque<copipe::rank_pipeline<cuda_device, hub::endpoint>> ranks{};
    std::deque<copipe::gradient_reduction<cuda_device, hub::endpoint>> reductions{};

private:
    auto all_ranks(bool training, std::vector<std::exception_ptr>& thrown) -> copipe::task<> {
        copipe::scope together{co_await copipe::this_environment{}};
        for (std::size_t r = 0; r < ranks.size(); ++r) together.spawn(caught(r, training, thrown[r]));
        co_await together.join();
    }
    auto caught(std::size_t r, bool training, std::exception_ptr& thrown) -> copipe::task<> {
        try {
            co_await step_of(r, training);
        } catch (...) {
            thrown = std::current_exception();
        }
    }
    auto step_of(std::size_t r, bool training = true) -> copipe::task<> {
        copipe::batch const from{copipe::dataset_ref{data}, 0};
        ranks[r].endpoint().follow(training ? orders[r].training : orders[r].evaluation);
        co_await ranks[r].run(from, training);
        if (static_cast<int>(r) == how.absent_from_sum) co_return;
        if (training) co_await reductions[r].sum();
        auto const summed = ranks[r].compute_stream().record();
        co_await summed.completion();
        summed.check();
        std::array<double, 1> end{1};
        co_await ranks[r].endpoint().all_reduce(end);
    }
    auto caught(std::size_t r, std::vector<std::string>& thrown) -> copipe::task<> {
        if (static_cast<int>(r) == how.silent_rank) co_return;
        try {
            co_await step_of(r);
        } catch (std::exception const& e) {
            thrown[r] = e.what();
        }
    }
};

} // namespace nccl_toy
