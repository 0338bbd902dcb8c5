// SPDX-License-Identifier: Apache-2.0
// A mixture of experts as a coroutine layer: it awaits its own all-to-alls, and inside an overlapped pair each of them
// gives the compute stream to the partner chunk. The same source runs on the CPU and in virtual time.
#pragma once

#include "moe/all_to_all.hpp"
#include "moe/kernels.hpp"

#include "copipe/device/host_stream.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace moe {

/// A mixture that cannot be, or a micro-batch too large for it.
class mixture_error : public copipe::error {
public:
    using error::error;
};

/// Runs kernels on the CPU.
struct host_work {
    template <class Kernel>
    void operator()(copipe::host_stream& on, Kernel const& kernel) const {
        on.launch(kernel);
    }
};

/// y = x + the sum over the `top` likeliest experts e of p_e(x) down_e tanh(up_e x), where p is a softmax over all
/// experts (Switch Transformer, GShard). No token is ever dropped.
///
/// Input [tokens, width]; tokens may differ by micro-batch and member. Member g of the group holds experts
/// [g * local, (g + 1) * local); their gradients come from all members' tokens. The router is replicated and its
/// gradient summed over the members, so that what a group of replicas minimizes is the sum of their losses. First
/// values depend on the seed and on layer and expert, not on the number of members. `Work` is called as
/// `work(stream, kernel)`.
template <copipe::device Device, class Work>
class mixture {
public:
    struct saved {
        tensor x, share, expert, row;          ///< of this member's tokens
        tensor arrived, hidden, dout, dhidden; ///< of the tokens that came for this member's experts
        tensor returned, dlogit;
    };

    /// Layer number `layer` of its model, on member `member` of `net`. Throws mixture_error.
    mixture(all_to_all<Device>& net, int member, int layer, sizes n, Work work = {})
        : net_(&net), member_(member), layer_(layer), n_(n), work_(std::move(work)) {
        if (n.members != net.members() || n.experts % n.members != 0 || n.top < 1 || n.top > n.experts) {
            throw mixture_error("layer " + std::to_string(layer) + ": " + std::to_string(n.experts) + " experts, top " +
                                std::to_string(n.top) + ", cannot be spread over " + std::to_string(n.members) +
                                " members of a group of " + std::to_string(net.members()) +
                                ": give each member of the group equally many");
        }
        auto const scale = [](std::int64_t inputs) {
            return copipe::normal(1 / std::sqrt(static_cast<double>(inputs)));
        };
        declare("router", {n.experts, n.width}, scale(n.width));
        for (std::int64_t e = member * n.local(); e < (member + 1) * n.local(); ++e) {
            declare("up." + std::to_string(e), {n.hidden, n.width}, scale(n.width));
            declare("down." + std::to_string(e), {n.width, n.hidden}, scale(n.hidden));
        }
    }

    [[nodiscard]] auto parameters() -> std::vector<copipe::parameter*> {
        std::vector<copipe::parameter*> all;
        for (copipe::parameter& each : parameters_) all.push_back(&each);
        return all;
    }

    auto forward(copipe::context<Device>& c, tensor x, saved& s) -> copipe::task<tensor> {
        std::int64_t const tokens = x.size(0);
        if (tokens > n_.tokens) {
            throw mixture_error("a micro-batch of " + std::to_string(tokens) + " tokens came to a mixture made for " +
                                std::to_string(n_.tokens) + ": raise sizes::tokens");
        }
        s.x = x;
        s.share = c.make({tokens, n_.experts});
        s.expert = c.make({tokens, n_.top}, copipe::dtype::i32);
        s.row = c.make({tokens, n_.top}, copipe::dtype::i32);
        tensor const parcels = parcels_of(c, tokens);
        work_(c.stream, kernels::route{map(s), x.data(), router().value.data(), s.share.data(), parcels.data()});

        s.arrived = parcels_of(c, n_.tokens);
        co_await net_->exchange(c, member_, id(c, pass::dispatch), parcels, s.arrived);

        s.hidden = c.make({n_.members, n_.rows(), n_.hidden});
        tensor const out = parcels_of(c, n_.tokens);
        for (std::int64_t e = 0; e < n_.local(); ++e) {
            work_(c.stream, kernels::expert_forward{n_, e, s.arrived.data(), up(e).value.data(), down(e).value.data(),
                                                    s.hidden.data(), out.data()});
        }

        s.returned = parcels_of(c, tokens);
        co_await net_->exchange(c, member_, id(c, pass::combine), out, s.returned);

        tensor y = c.make(x.sizes());
        work_(c.stream, kernels::combine{map(s), x.data(), s.share.data(), s.returned.data(), y.data()});
        co_return y;
    }

    auto backward_input(copipe::context<Device>& c, tensor dy, saved& s) -> copipe::task<tensor> {
        std::int64_t const tokens = s.x.size(0);
        tensor const dshare = c.make({tokens, n_.top});
        tensor const parcels = parcels_of(c, tokens);
        work_(c.stream, kernels::combine_backward{map(s), dy.data(), s.share.data(), s.returned.data(), parcels.data(),
                                                  dshare.data()});

        s.dout = parcels_of(c, n_.tokens);
        co_await net_->exchange(c, member_, id(c, pass::combine_backward), parcels, s.dout);

        s.dhidden = c.make(s.hidden.sizes());
        tensor const dexperts = parcels_of(c, n_.tokens);
        for (std::int64_t e = 0; e < n_.local(); ++e) {
            work_(c.stream, kernels::expert_backward_input{n_, e, s.arrived.data(), s.dout.data(), up(e).value.data(),
                                                           down(e).value.data(), s.hidden.data(), s.dhidden.data(),
                                                           dexperts.data()});
        }

        tensor const returned = parcels_of(c, tokens);
        co_await net_->exchange(c, member_, id(c, pass::dispatch_backward), dexperts, returned);

        s.dlogit = c.make({tokens, n_.experts});
        tensor dx = c.make(s.x.sizes());
        work_(c.stream, kernels::route_backward{map(s), dy.data(), returned.data(), s.share.data(), dshare.data(),
                                                router().value.data(), s.dlogit.data(), dx.data()});
        s.share = s.expert = s.row = s.returned = {};
        co_return dx;
    }

    auto backward_weight(copipe::context<Device>& c, saved& s) -> copipe::task<> {
        tensor const parts = c.make({n_.members, n_.experts, n_.width});
        tensor const all = c.make(parts.sizes());
        work_(c.stream, kernels::router_backward_weight{n_, s.x.size(0), s.x.data(), s.dlogit.data(), parts.data()});
        for (std::int64_t e = 0; e < n_.local(); ++e) {
            work_(c.stream,
                  kernels::expert_backward_weight{n_, e, s.arrived.data(), s.dout.data(), s.hidden.data(),
                                                  s.dhidden.data(), up(e).gradient.data(), down(e).gradient.data()});
        }
        co_await net_->exchange(c, member_, id(c, pass::router_gradient), parts, all);
        work_(c.stream, kernels::add_parts{n_, all.data(), router().gradient.data()});
    }

private:
    void declare(std::string const& name, copipe::extents const& sizes, copipe::initial first) {
        // The tie makes an expert's first values its own, whichever member holds it.
        std::string const tie = "layer." + std::to_string(layer_) + "." + name;
        parameters_.push_back({.name = name, .sizes = sizes, .first = first, .tie = tie});
    }
    auto router() -> copipe::parameter& { return parameters_[0]; }
    auto up(std::int64_t expert) -> copipe::parameter& { return parameters_[static_cast<std::size_t>(1 + 2 * expert)]; }
    auto down(std::int64_t expert) -> copipe::parameter& {
        return parameters_[static_cast<std::size_t>(2 + 2 * expert)];
    }

    [[nodiscard]] auto id(copipe::context<Device> const& c, pass what) const -> exchange_id {
        return {layer_, c.micro_batch, what};
    }
    [[nodiscard]] auto parcels_of(copipe::context<Device> const& c, std::int64_t tokens) const -> tensor {
        return c.make({n_.members, n_.parcel(tokens)});
    }
    [[nodiscard]] auto map(saved const& s) const -> kernels::parcel_map {
        return {n_, s.x.size(0), s.expert.template data<std::int32_t>(), s.row.template data<std::int32_t>()};
    }

    all_to_all<Device>* net_;
    int member_;
    int layer_;
    sizes n_;
    Work work_;
    std::vector<copipe::parameter> parameters_{};
};

} // namespace moe
