// SPDX-License-Identifier: Apache-2.0
// A GPT as copipe layers, for any device that has its kernels: embedding, transformer blocks (one block is one layer,
// the unit of a partition), and a head with the final layer norm, the tied output matrix and the loss. Every function
// enqueues kernels and returns.
#pragma once

#include "gpt/parts.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace gpt {

/// A configuration that no GPT can have; the sentence names the option at fault.
class config_error : public copipe::error {
public:
    using error::error;
};

/// The name under which the embedding and the head share one matrix.
inline constexpr auto token_tie = "token_embedding";

/// Tokens [batch, time] (i32) to [batch, time, width].
template <class Device>
class basic_embedding {
public:
    using context = copipe::context<Device>;
    struct saved {
        tensor tokens, dy;
    };

    basic_embedding(int vocabulary, int longest, int width)
        : token_{.name = "token", .sizes = {vocabulary, width}, .first = copipe::normal(0.02), .tie = token_tie},
          position_{.name = "position", .sizes = {longest, width}, .first = copipe::normal(0.02)} {}

    auto parameters() -> std::array<parameter*, 2> { return {&token_, &position_}; }
    /// Throws config_error for more tokens than there are positions.
    auto forward(context& c, tensor tokens, saved& s) const -> tensor {
        if (tokens.size(1) > position_.sizes[0]) {
            throw config_error("a sequence of " + std::to_string(tokens.size(1)) + " tokens exceeds the context of " +
                               std::to_string(position_.sizes[0]) + ": shorten it or enlarge the context");
        }
        tensor y = c.make({tokens.size(0), tokens.size(1), token_.sizes[1]});
        launch<embedding_forward>(c, shape(y), tokens, token_.value, position_.value, y);
        s.tokens = std::move(tokens);
        return y;
    }
    auto backward_input(context&, tensor dy, saved& s) const -> tensor {
        s.dy = std::move(dy);
        return {};
    }
    void backward_weight(context& c, saved& s) const {
        launch<embedding_backward>(c, shape(s.dy), s.tokens, s.dy, token_.gradient, position_.gradient);
    }

private:
    [[nodiscard]] auto shape(tensor const& y) const -> embedding_shape {
        return {static_cast<int>(y.size(0)), static_cast<int>(y.size(1)), static_cast<int>(y.size(2)),
                static_cast<int>(token_.sizes[0])};
    }
    parameter token_, position_;
};

/// A transformer block, [batch, time, width] to the same (Radford et al. 2019, GPT-2): x + attention(norm(x)), then
/// x + mlp(norm(x)).
template <class Device>
class basic_block {
public:
    using context = copipe::context<Device>;
    struct saved {
        norm::saved attention_norm;
        linear::saved packed;
        tensor qkv, probabilities;
        linear::saved attention;
        norm::saved mlp_norm;
        linear::saved expand;
        tensor hidden;
        linear::saved contract;
    };

    /// `depth`, the number of blocks in the model, scales the first values of what is added to the residual stream.
    basic_block(int width, int heads, int depth)
        : heads_(heads),
          attention_norm_("attention.norm", width),
          packed_("attention.qkv", width, 3 * width, 0.02),
          attention_("attention.out", width, width, 0.02 / std::sqrt(2.0 * depth)),
          mlp_norm_("mlp.norm", width),
          expand_("mlp.expand", width, 4 * width, 0.02),
          contract_("mlp.contract", 4 * width, width, 0.02 / std::sqrt(2.0 * depth)) {}

    auto parameters() -> std::array<parameter*, 12> {
        return {&attention_norm_.gain, &attention_norm_.bias, &packed_.weight,   &packed_.bias,
                &attention_.weight,    &attention_.bias,      &mlp_norm_.gain,   &mlp_norm_.bias,
                &expand_.weight,       &expand_.bias,         &contract_.weight, &contract_.bias};
    }

    auto forward(context& c, tensor x, saved& s) const -> tensor {
        s.qkv = packed_.forward(c, attention_norm_.forward(c, x, s.attention_norm), s.packed);
        tensor attended = c.make(x.sizes());
        s.probabilities = c.make({x.size(0), heads_, x.size(1), x.size(1)});
        launch<attention_forward>(c, shape(x), s.qkv, attended, s.probabilities);
        x = added(c, x, attention_.forward(c, attended, s.attention));

        s.hidden = expand_.forward(c, mlp_norm_.forward(c, x, s.mlp_norm), s.expand);
        tensor activated = c.make(s.hidden.sizes());
        launch<gelu_forward>(c, elements(s.hidden), s.hidden, activated);
        return added(c, x, contract_.forward(c, activated, s.contract));
    }

    auto backward_input(context& c, tensor dy, saved& s) const -> tensor {
        tensor const dhidden = contract_.backward_input(c, dy, s.contract);
        launch<gelu_backward>(c, elements(dhidden), dhidden, std::exchange(s.hidden, {}), dhidden);
        dy = added(c, dy, mlp_norm_.backward_input(c, expand_.backward_input(c, dhidden, s.expand), s.mlp_norm));

        tensor const dattended = attention_.backward_input(c, dy, s.attention);
        tensor const dqkv = c.make(s.qkv.sizes());
        tensor const scratch = c.make(kernels_of<Device>::scratch(shape(dy)));
        launch<attention_backward>(c, shape(dy), dattended, std::exchange(s.qkv, {}),
               std::exchange(s.probabilities, {}), dqkv, scratch);
        return added(c, dy,
                     attention_norm_.backward_input(c, packed_.backward_input(c, dqkv, s.packed), s.attention_norm));
    }

    void backward_weight(context& c, saved& s) const {
        attention_norm_.backward_weight(c, s.attention_norm);
        packed_.backward_weight(c, s.packed);
        attention_.backward_weight(c, s.attention);
        mlp_norm_.backward_weight(c, s.mlp_norm);
        expand_.backward_weight(c, s.expand);
        contract_.backward_weight(c, s.contract);
    }

private:
    [[nodiscard]] auto shape(tensor const& x) const -> attention_shape {
        return {static_cast<int>(x.size(0)), static_cast<int>(x.size(1)), static_cast<int>(x.size(2)), heads_};
    }
    [[nodiscard]] static auto elements(tensor const& x) -> std::ptrdiff_t {
        return static_cast<std::ptrdiff_t>(x.count());
    }

    int heads_;
    norm attention_norm_;
    linear packed_, attention_;
    norm mlp_norm_;
    linear expand_, contract_;
};

/// The share of one target in a mean over those that count.
[[nodiscard]] inline auto share(int rows, std::int32_t const* targets) noexcept -> float {
    auto const ignored_rows = std::count(targets, targets + rows, ignored);
    return 1.0f / static_cast<float>(std::max<std::ptrdiff_t>(rows - ignored_rows, 1));
}
inline void mean_cross_entropy_forward(cross_entropy_shape s, float const* logits, std::int32_t const* targets,
                                       float* log_sum_exp, float* loss) noexcept {
    s.scale = share(s.rows, targets);
    *loss = static_cast<float>(cross_entropy_forward(s, logits, targets, log_sum_exp));
}
inline void mean_cross_entropy_backward(cross_entropy_shape s, float const* logits, std::int32_t const* targets,
                                        float const* log_sum_exp, float* dlogits) noexcept {
    s.scale *= share(s.rows, targets);
    cross_entropy_backward(s, logits, targets, log_sum_exp, dlogits);
}

/// [batch, time, width] to the loss: the mean cross-entropy of the micro-batch's targets [batch, time] (i32). Without a
/// target it returns the logits [batch, time, vocabulary] instead, to sample from.
template <class Device>
class basic_head {
public:
    using context = copipe::context<Device>;
    struct saved {
        norm::saved normed;
        tensor y, logits, log_sum_exp, target;
    };

    basic_head(int vocabulary, int width)
        : norm_("norm", width),
          token_{{.name = "token", .sizes = {vocabulary, width}, .first = copipe::normal(0.02), .tie = token_tie}} {}

    auto parameters() -> std::array<parameter*, 3> { return {&norm_.gain, &norm_.bias, &token_}; }

    auto forward(context& c, tensor x, saved& s) const -> tensor {
        s.logits = c.make({x.size(0), x.size(1), token_.sizes[0]});
        s.y = norm_.forward(c, std::move(x), s.normed);
        launch<linear_forward>(c, shape(s.y), s.y, token_, nullptr, s.logits);
        if (!c.target) return std::exchange(s.logits, {});
        s.target = c.target;
        s.log_sum_exp = c.make({rows(s.y)});
        tensor loss = c.make({1});
        launch<mean_cross_entropy_forward>(c, entropy(s.y, 1), s.logits, s.target, s.log_sum_exp, loss);
        return loss;
    }
    auto backward_input(context& c, tensor, saved& s) const -> tensor {
        tensor const& dlogits = s.logits;
        launch<mean_cross_entropy_backward>(c, entropy(s.y, c.scale), s.logits, s.target, s.log_sum_exp, dlogits);
        tensor dy = c.make(s.y.sizes());
        launch<linear_backward_input>(c, shape(s.y), dlogits, token_, dy);
        return norm_.backward_input(c, std::move(dy), s.normed);
    }
    void backward_weight(context& c, saved& s) const {
        norm_.backward_weight(c, s.normed);
        launch<linear_backward_weight>(c, shape(s.y), s.y, s.logits, token_.gradient, nullptr);
    }

private:
    [[nodiscard]] auto shape(tensor const& y) const -> linear_shape {
        return {rows(y), static_cast<int>(token_.sizes[1]), static_cast<int>(token_.sizes[0])};
    }
    [[nodiscard]] auto entropy(tensor const& y, float scale) const -> cross_entropy_shape {
        return {rows(y), static_cast<int>(token_.sizes[0]), scale};
    }
    norm norm_;
    factor token_;
};

using embedding = basic_embedding<copipe::host_device>;
using block = basic_block<copipe::host_device>;
using head = basic_head<copipe::host_device>;
static_assert(copipe::layer<embedding, copipe::host_device> && copipe::layer<block, copipe::host_device> &&
              copipe::layer<head, copipe::host_device>);

} // namespace gpt
