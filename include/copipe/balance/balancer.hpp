// SPDX-License-Identifier: Apache-2.0
// What decides which layers form which stage while a model trains: measurements in, a better partition or nothing out.
#pragma once

#include "copipe/balance/layout.hpp"
#include "copipe/balance/measurements.hpp"
#include "copipe/model/partition.hpp"

#include <concepts>
#include <optional>
#include <string_view>
#include <utility>

namespace copipe {

/// Whoever decides when layers move, and where to.
///
/// `b.propose(seen, now)` is called between steps, on one thread, after every `b.check_every()` steps for which there
/// are measurements; with 0 never, and then nothing is measured. It returns a partition into as many stages over the
/// same layers, to which the trainer moves before the next step; or nothing, and all stays. `seen` and `now` live only
/// as long as the call. What it throws ends the step that was to come. Results of training do not depend on it.
template <class B>
concept balancer = requires(B& b, B const& asked, measurements const& seen, partition const& now) {
    { b.propose(seen, now) } -> std::same_as<std::optional<partition>>;
    { asked.check_every() } -> std::same_as<int>;
};

/// Nothing moves. A trainer starts with the partition given here, if any, else as evenly as possible.
class static_partition {
public:
    static_partition() = default;
    explicit static_partition(partition given) : given_(std::move(given)) {}
    /// From a Megatron-style layout string, every letter of which is a layer. Throws layout_error, partition_error.
    template <class = void> explicit static_partition(std::string_view layout) {
        auto bounds = read_layout(layout).bounds();
        int const layers = bounds.back();
        given_ = partition::given(std::move(bounds), layers);
    }

    /// The partition to start with. Throws partition_error unless it is one of `layers` layers into `stages` stages.
    template <class = void> [[nodiscard]] auto start(int layers, int stages) const -> partition {
        if (!given_) return partition::even(layers, stages);
        if (given_->stages() != stages) {
            throw partition_error("the partition given has " + std::to_string(given_->stages()) +
                                  " stages but the schedule cuts the model into " + std::to_string(stages));
        }
        return partition::given(given_->bounds(), layers);
    }

    [[nodiscard]] static auto propose(measurements const&, partition const&) -> std::optional<partition> { return {}; }
    [[nodiscard]] static constexpr auto check_every() noexcept -> int { return 0; }

private:
    std::optional<partition> given_;
};
static_assert(balancer<static_partition>);

} // namespace copipe
