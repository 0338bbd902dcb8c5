// SPDX-License-Identifier: Apache-2.0
// A trainer whose policy is known at run time only: every policy is compiled in, and this is what they have in common.
#pragma once

#include "copipe/balance/balanced.hpp"
#include "copipe/device/host.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/train/planned_trainer.hpp"
#include "gpt/corpus.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace gpt {

using copipe::host_device;

/// What users type for a policy; the reference, which needs no pipeline, first.
inline constexpr std::array policy_names{copipe::sequential::name, copipe::gpipe::name, copipe::one_f_one_b::name,
                                         copipe::dualpipe::name, copipe::dualpipe_v::name};

/// Calls `visit(policy)` with the policy of that name.
template <class Visit>
auto with_policy(std::string_view name, Visit visit) {
    if (name == copipe::sequential::name) return visit(copipe::sequential{});
    if (name == copipe::gpipe::name) return visit(copipe::gpipe{});
    if (name == copipe::one_f_one_b::name) return visit(copipe::one_f_one_b{});
    if (name == copipe::dualpipe::name) return visit(copipe::dualpipe{});
    if (name == copipe::dualpipe_v::name) return visit(copipe::dualpipe_v{});
    throw std::invalid_argument("there is no policy named " + std::string(name));
}

/// Moves layers as `balanced` does, or, if that is empty, not at all; remembers how fast the ranks were.
struct chosen_balancer {
    std::optional<copipe::balanced> moving{};
    copipe::row<double> slowness{}; ///< by rank, 1 is the fastest; empty before anything was seen
    copipe::decision last{};

    auto propose(copipe::measurements const& seen, copipe::partition const& now) -> std::optional<copipe::partition> {
        if (!moving) return {};
        slowness = seen.slowness;
        auto plan = moving->propose(seen, now);
        last = moving->last_decision();
        return plan;
    }
    [[nodiscard]] auto notices(copipe::row<double> const& work, std::uint64_t step) -> bool {
        return moving && moving->notices(work, step);
    }
    [[nodiscard]] auto check_every() const -> int { return moving ? moving->check_every() : 0; }
    [[nodiscard]] auto last_decision() const -> copipe::decision const& { return last; }
};
static_assert(copipe::balancer<chosen_balancer>);

/// The part of copipe::trainer that this program uses; see there.
class any_trainer {
public:
    any_trainer() = default;
    any_trainer(any_trainer const&) = delete;
    any_trainer& operator=(any_trainer const&) = delete;
    virtual ~any_trainer() = default;

    virtual auto step(micro_batches const& data) -> copipe::step_report = 0;
    virtual auto fit(micro_batches const& data, copipe::steps until, copipe::fit_options const& options)
        -> std::uint64_t = 0;
    virtual auto evaluate(micro_batches const& data, std::uint64_t batches) -> double = 0;
    virtual void load(std::string const& file) = 0;
    [[nodiscard]] virtual auto values(std::string const& name) -> std::vector<float> = 0;
    [[nodiscard]] virtual auto parameters() const -> std::vector<copipe::parameter_group> const& = 0;
    [[nodiscard]] virtual auto steps_done() const -> std::uint64_t = 0;
    [[nodiscard]] virtual auto layers() const -> copipe::partition const& = 0;
    [[nodiscard]] virtual auto balancer() -> chosen_balancer const& = 0;
    [[nodiscard]] virtual auto fingerprints() const -> std::vector<copipe::fingerprint> = 0;
    [[nodiscard]] virtual auto spans() const -> copipe::recorder const& = 0;
    [[nodiscard]] virtual auto memory_in_use(int rank) const -> std::size_t = 0;
    [[nodiscard]] virtual auto peak_memory(int rank) const -> std::size_t = 0;
};

/// A trainer under the policy of that name. Throws what trainer's constructor throws.
[[nodiscard]] auto make_trainer(std::string_view policy, copipe::model<host_device> const& model,
                                copipe::trainer_options<host_device> options, chosen_balancer decides = {})
    -> std::unique_ptr<any_trainer>;

/// The same for a rank that is a process of its own, connected to the others by TCP. Throws rendezvous_error, too.
[[nodiscard]] auto make_process_trainer(std::string_view policy, copipe::model<host_device> const& model,
                                        copipe::trainer_options<host_device> options) -> std::unique_ptr<any_trainer>;

} // namespace gpt
