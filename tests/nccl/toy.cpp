// SPDX-License-Identifier: Apache-2.0
#include "nccl/toy.hpp"

#include "cuda/toy_engine.hpp"

#include "copipe/pipeline/exchange_order.hpp"
#include "copipe/transport/nccl.hpp"

#include <array>
#include <exception>
#include <optional>

namespace nccl_toy {

struct connected::hub {
    copipe::nccl<> net;
    std::deque<cuda_device> devices{};
    std::vector<copipe::nccl<>::endpoint> ends{};
};
connected::connected(copipe::traffic expected, std::vector<int> const& places)
    : gpus(fake::drive::by_test, static_cast<int>(places.size())),
      hub_(new hub{.net{static_cast<int>(places.size()), std::move(expected),
                        {.watch = copipe::nccl_watch::by_program}}}) {
    for (int const gpu : places) {
        auto& dev = hub_->devices.emplace_back(
            copipe::cuda_options{.gpu = gpu, .polling = copipe::cuda_polling::by_program, .make_stream = {}});
        hub_->ends.push_back(hub_->net.connect(static_cast<int>(hub_->ends.size()), dev));
        streams.push_back(&dev.open_stream("compute"));
    }
}
connected::~connected() = default;
auto connected::sum(std::size_t rank, std::span<int const> over, std::span<copipe::summand const> parts) -> bool {
    return hub_->ends[rank].sum(over, parts, *streams[rank]);
}

struct pipeline::engine {
    engine(fake::machine& gpus, copipe::step_plan const& plan, copipe::model<cuda_device> const& layers,
           copipe::partition const& division, setup const& asked)
        : cut(division),
          groups(copipe::parameter_groups(layers, cut, plan.where)),
          orders(copipe::orders_of(plan)),
          how(asked),
          net(plan.where.ranks, copipe::traffic_of(plan.where, groups),
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
        if (how.unfused) unfuse();
        for (int r = 0; r < net.ranks(); ++r) {
            auto const polling = how.by_test ? copipe::cuda_polling::by_program : copipe::cuda_polling::own_thread;
            exec.serve(
                devices.emplace_back(copipe::cuda_options{.gpu = r, .polling = polling, .make_stream = {}}));
        }
        std::vector<copipe::nccl<>::endpoint> ends;
        for (int r = 0; r < net.ranks(); ++r) ends.push_back(net.connect(r, devices[static_cast<std::size_t>(r)]));
        for (int r = 0; r < net.ranks(); ++r) {
            ranks.emplace_back(plan, cut, layers, r, devices[static_cast<std::size_t>(r)],
                               std::move(ends[static_cast<std::size_t>(r)]),
                               copipe::pipeline_options{.lookahead = how.lookahead, .seed = 3, .listener = {}});
            reductions.emplace_back(ranks.back(), groups);
        }
    }

    copipe::partition cut;
    std::vector<copipe::parameter_group> groups;
    std::vector<copipe::step_orders> orders;
    setup const& how;
    cuda_toy::numbers data{};
    copipe::nccl<> net;
    cuda_toy::driver exec;
    std::optional<copipe::rank_team> team{};
    std::deque<cuda_device> devices{};
    std::deque<copipe::rank_pipeline<cuda_device, copipe::nccl<>::endpoint>> ranks{};
    std::deque<copipe::gradient_reduction<cuda_device, copipe::nccl<>::endpoint>> reductions{};

    void unfuse() {
        for (auto& rank : orders) {
            for (auto& with : rank.training) {
                std::vector<copipe::exchange> apart;
                for (copipe::exchange const& each : with.ticks) {
                    if (each.send != each.none) apart.push_back({each.send, each.none});
                    if (each.receive != each.none) apart.push_back({each.none, each.receive});
                }
                with.ticks = apart;
            }
        }
    }
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
        try {
            co_await end_of(r, training);
        } catch (...) {
            ranks[r].endpoint().abort();
            throw;
        }
    }
    auto end_of(std::size_t r, bool training) -> copipe::task<> {
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

pipeline::pipeline(fake::machine& gpus, copipe::step_plan planned, copipe::model<cuda_device> const& layers,
                   copipe::partition const& division, setup const& options)
    : plan_(std::move(planned)),
      how(options),
      engine_(std::make_unique<engine>(gpus, plan_, layers, division, how)),
      devices(engine_->devices) {}
pipeline::~pipeline() = default;

void pipeline::step_by_test(bool training) {
    auto& exec = engine_->exec;
    exec.on_deadlock = [this] { engine_->ranks.front().endpoint().abort(); };
    std::vector<std::exception_ptr> thrown(engine_->ranks.size());
    copipe::run(exec, engine_->all_ranks(training, thrown));
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
auto pipeline::step_by_threads() -> std::vector<std::string> {
    if (!engine_->team) engine_->team.emplace(engine_->net.ranks());
    std::vector<std::string> thrown(engine_->ranks.size());
    engine_->team->run([&](int r) { return engine_->caught(static_cast<std::size_t>(r), thrown); });
    return thrown;
}
void pipeline::recover() {
    for (auto& each : engine_->ranks) each.recover();
}
auto pipeline::result() -> outcome {
    return cuda_toy::outcome_of(plan_, engine_->groups, engine_->ranks, engine_->reductions);
}

} // namespace nccl_toy
