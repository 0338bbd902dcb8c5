// SPDX-License-Identifier: Apache-2.0
// What a trained model writes: byte after byte, each drawn from what it predicts for the bytes before.
#pragma once

#include "copipe/async/executor.hpp"
#include "copipe/model/stage.hpp"
#include "gpt/any_trainer.hpp"
#include "gpt/model.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gpt {

/// All layers of a GPT on one device without a pipeline, with a trainer's parameters.
class sampler {
public:
    sampler(config const& size, any_trainer& trained)
        : context_(size.context),
          vocabulary_(static_cast<std::size_t>(size.vocabulary)),
          layers_(make_model(size), 0, size.blocks + 2, 1, 0, stream_) {
        for (copipe::parameter_group const& group : trained.parameters()) {
            std::vector<float> const values = trained.values(group.name);
            for (copipe::parameter_use const& use : group.uses) {
                auto const& own = layers_.layer_at(use.layer).parameters()[use.index]->value;
                stream_.copy(own.data(), values.data(), own.bytes());
                stream_.synchronize();
            }
        }
    }

    /// `count` bytes that go on after a line's end. The same seed gives the same text. Below a temperature of 1 likely
    /// bytes become likelier.
    [[nodiscard]] auto text(std::size_t count, std::uint64_t seed, double temperature = 0.7) -> std::string {
        copipe::counter_random const random{seed, 0x73616d706c65};
        std::string written = "\n";
        while (written.size() <= count) written += draw(predict(written), random.uniform(written.size()), temperature);
        return written.substr(1);
    }

private:
    /// The logits of the byte after `text`.
    [[nodiscard]] auto predict(std::string const& text) -> std::vector<float> {
        std::size_t const length = std::min(text.size(), static_cast<std::size_t>(context_));
        std::vector<std::int32_t> tokens(length);
        std::transform(text.end() - static_cast<std::ptrdiff_t>(length), text.end(), tokens.begin(),
                       [](char byte) { return static_cast<unsigned char>(byte); });
        std::vector<float> logits(vocabulary_);
        copipe::executor exec;
        copipe::run(exec, forward(tokens, logits));
        return logits;
    }

    auto forward(std::span<std::int32_t const> tokens, std::span<float> logits) -> copipe::task<> {
        context work{.stream = stream_, .training = false, .target = {}};
        tensor value = work.make({1, static_cast<std::int64_t>(tokens.size())}, copipe::dtype::i32);
        stream_.copy(value.data(), tokens.data(), tokens.size_bytes());
        value = co_await layers_.forward(work, 0, value);
        stream_.copy(logits.data(), value.data() + value.count() - logits.size(), logits.size_bytes());
        stream_.synchronize();
    }

    [[nodiscard]] static auto draw(std::vector<float> const& logits, double uniform, double temperature) -> char {
        double const highest = *std::max_element(logits.begin(), logits.end());
        std::vector<double> sums;
        for (float const logit : logits)
            sums.push_back((sums.empty() ? 0 : sums.back()) + std::exp((logit - highest) / temperature));
        auto const drawn = std::upper_bound(sums.begin(), sums.end() - 1, uniform * sums.back()) - sums.begin();
        return static_cast<char>(static_cast<unsigned char>(drawn));
    }

    int context_;
    std::size_t vocabulary_;
    copipe::host_device device_{copipe::host_execution::inline_};
    copipe::host_stream& stream_{device_.open_stream("sample")};
    copipe::stage<host_device> layers_;
};

/// How many bytes of UTF-8 begin at `at` and can be shown on a terminal; 0 if none.
[[nodiscard]] inline auto shown_at(std::string_view text, std::size_t at) -> std::size_t {
    auto const lead = static_cast<unsigned char>(text[at]);
    if (lead < 0x80) return lead == '\n' || lead == '\t' || (lead >= 0x20 && lead != 0x7f) ? 1 : 0;
    std::size_t const length = lead >= 0xc2 && lead < 0xe0 ? 2 : lead > 0xe0 && lead < 0xf0 ? 3 : 0;
    std::string_view const rest = text.substr(at, length).substr(length == 0 ? 0 : 1);
    auto const follows = [](char byte) { return (static_cast<unsigned char>(byte) & 0xc0U) == 0x80; };
    return rest.size() + 1 == length && std::all_of(rest.begin(), rest.end(), follows) ? length : 0;
}

/// Text as a terminal can show it, all else as question marks.
[[nodiscard]] inline auto printable(std::string text) -> std::string {
    for (std::size_t i = 0; i < text.size();) {
        std::size_t const shown = shown_at(text, i);
        if (shown == 0) text[i] = '?';
        i += std::max<std::size_t>(shown, 1);
    }
    return text;
}

} // namespace gpt
