// SPDX-License-Identifier: Apache-2.0
#include "gpt/model.hpp"

#include "catch.hpp"
#include "reference.hpp"

#include <algorithm>
#include <array>
#include <concepts>
#include <functional>
#include <string>
#include <vector>

namespace {

using namespace reference;
using copipe::parameter;
using copipe::tensor;

/// A rank's compute stream, and tensors on it from and to vectors.
struct rank {
    copipe::host_device device{};
    copipe::host_stream& stream = device.open_stream("compute");
    gpt::context context{.stream = stream};

    /// The memory may still be in use by launched work, so the host waits before it writes.
    template <class T>
    auto upload(std::vector<T> const& values, copipe::extents const& sizes) -> tensor {
        tensor t = context.make(sizes, std::same_as<T, float> ? copipe::dtype::f32 : copipe::dtype::i32);
        stream.synchronize();
        std::copy(values.begin(), values.end(), t.template data<T>());
        return t;
    }
    auto download(tensor const& t) -> floats {
        stream.synchronize();
        return {t.data(), t.data() + t.count()};
    }
    /// Gives the parameters of a layer random values and zero gradients; returns the values.
    auto place(auto& layer) -> std::vector<floats> {
        std::vector<floats> values;
        unsigned seed = 100;
        for (parameter* each : layer.parameters()) {
            values.push_back(random_floats(static_cast<int>(each->count()), ++seed));
            each->value = upload(values.back(), each->sizes);
            each->gradient = upload(floats(each->count()), each->sizes);
        }
        return values;
    }
};

using all_doubles = std::vector<doubles>;

/// Checks the gradient of every parameter of a layer, which `backward_weight` has added twice, against central
/// differences of dot(function(parameters), dy).
template <class Layer>
void require_parameter_gradients(rank& r, Layer& layer, std::vector<floats> const& values, floats const& dy,
                                 std::function<doubles(all_doubles const&)> const& function) {
    all_doubles at;
    for (floats const& each : values) at.push_back(widened(each));
    auto const parameters = layer.parameters();
    for (std::size_t p = 0; p < values.size(); ++p) {
        INFO(parameters[p]->name);
        floats gradient = r.download(parameters[p]->gradient);
        for (float& each : gradient) each /= 2;
        require_gradient(gradient, values[p], dy, [&](doubles const& changed) {
            all_doubles moved = at;
            moved[p] = changed;
            return function(moved);
        });
    }
}

doubles sum(doubles a, doubles const& b) {
    std::transform(a.begin(), a.end(), b.begin(), a.begin(), std::plus<>{});
    return a;
}

/// A block in double precision; `p` in the order of its parameters.
doubles block(gpt::attention_shape s, doubles const& x, all_doubles const& p) {
    int const rows = s.batch * s.time;
    int const width = s.channels;
    gpt::norm_shape const norm{rows, width};
    doubles const qkv = linear({rows, width, 3 * width}, layer_norm(norm, x, p[0], p[1]), p[2], p[3]);
    doubles const middle = sum(x, linear({rows, width, width}, attention(s, qkv), p[4], p[5]));
    doubles const hidden = linear({rows, width, 4 * width}, layer_norm(norm, middle, p[6], p[7]), p[8], p[9]);
    return sum(middle, linear({rows, 4 * width, width}, gelu(hidden), p[10], p[11]));
}

} // namespace

TEST_CASE("a block and all its gradients agree with double precision and finite differences") {
    gpt::attention_shape const s = GENERATE(gpt::attention_shape{2, 3, 6, 2}, gpt::attention_shape{1, 1, 3, 1});
    rank r;
    gpt::block layer{s.channels, s.heads, 2};
    auto const values = r.place(layer);
    all_doubles p;
    for (floats const& each : values) p.push_back(widened(each));
    copipe::extents const sizes{s.batch, s.time, s.channels};
    floats const x = random_floats(static_cast<int>(sizes.count()), 1);
    floats const dy = random_floats(static_cast<int>(sizes.count()), 2);

    gpt::block::saved saved;
    tensor const y = layer.forward(r.context, r.upload(x, sizes), saved);
    REQUIRE(y.sizes() == sizes);
    require_close(r.download(y), block(s, widened(x), p));
    tensor const dx = layer.backward_input(r.context, r.upload(dy, sizes), saved);
    layer.backward_weight(r.context, saved);
    layer.backward_weight(r.context, saved);
    require_gradient(r.download(dx), x, dy, [&](doubles const& at) { return block(s, at, p); });
    require_parameter_gradients(r, layer, values, dy, [&](all_doubles const& at) { return block(s, widened(x), at); });
}

TEST_CASE("the embedding layer and its gradients agree with double precision and finite differences") {
    rank r;
    gpt::embedding layer{5, 7, 6};
    auto const values = r.place(layer);
    tokens const ids = random_tokens(2 * 4, 5, 3);
    floats const dy = random_floats(2 * 4 * 6, 2);
    auto const function = [&](all_doubles const& at) { return embedding({2, 4, 6}, ids, at[0], at[1]); };

    gpt::embedding::saved saved;
    tensor const y = layer.forward(r.context, r.upload(ids, {2, 4}), saved);
    REQUIRE(y.sizes() == copipe::extents{2, 4, 6});
    require_close(r.download(y), function({widened(values[0]), widened(values[1])}));
    REQUIRE_FALSE(layer.backward_input(r.context, r.upload(dy, {2, 4, 6}), saved));
    layer.backward_weight(r.context, saved);
    layer.backward_weight(r.context, saved);
    require_parameter_gradients(r, layer, values, dy, function);
}

TEST_CASE("the head returns the mean loss of the micro-batch, and its gradients carry the scale") {
    constexpr int batch = 2, time = 3, width = 5, vocabulary = 7, rows = batch * time;
    float const scale = GENERATE(1.0f, 0.25f);
    bool const one_ignored = GENERATE(false, true);
    rank r;
    gpt::head layer{vocabulary, width};
    auto const values = r.place(layer);
    floats const x = random_floats(rows * width, 1);
    tokens targets = random_tokens(rows, vocabulary, 2);
    if (one_ignored) targets[4] = gpt::ignored;
    auto const loss_of = [&](doubles const& at, all_doubles const& p) {
        doubles const logits = linear({rows, width, vocabulary}, layer_norm({rows, width}, at, p[0], p[1]), p[2], {});
        return doubles{cross_entropy({rows, vocabulary, 1.0f / (one_ignored ? rows - 1 : rows)}, logits, targets)};
    };
    all_doubles p;
    for (floats const& each : values) p.push_back(widened(each));

    r.context.target = r.upload(targets, {batch, time});
    r.context.scale = scale;
    gpt::head::saved saved;
    tensor const loss = layer.forward(r.context, r.upload(x, {batch, time, width}), saved);
    REQUIRE(loss.sizes() == copipe::extents{1});
    require_close(r.download(loss), loss_of(widened(x), p));
    r.context.target = {};
    tensor const dx = layer.backward_input(r.context, {}, saved);
    layer.backward_weight(r.context, saved);
    layer.backward_weight(r.context, saved);
    require_gradient(r.download(dx), x, {scale}, [&](doubles const& at) { return loss_of(at, p); });
    require_parameter_gradients(r, layer, values, {scale},
                                [&](all_doubles const& at) { return loss_of(widened(x), at); });
}

TEST_CASE("without a target the head returns the logits") {
    rank r;
    gpt::head layer{7, 5};
    auto const values = r.place(layer);
    floats const x = random_floats(3 * 5, 1);
    gpt::head::saved saved;
    tensor const logits = layer.forward(r.context, r.upload(x, {1, 3, 5}), saved);
    REQUIRE(logits.sizes() == copipe::extents{1, 3, 7});
    doubles const normed = layer_norm({3, 5}, widened(x), widened(values[0]), widened(values[1]));
    require_close(r.download(logits), linear({3, 5, 7}, normed, widened(values[2]), {}));
}

TEST_CASE("a weight gradient may come long after the input gradient, and micro-batches may be mixed") {
    copipe::extents const sizes{1, 4, 8};
    auto const gradients = [&](bool deferred) {
        rank r;
        gpt::block layer{8, 2, 1};
        r.place(layer);
        std::array<gpt::block::saved, 2> saved;
        tensor keep;
        for (unsigned m : {0u, 1u}) keep = layer.forward(r.context, r.upload(random_floats(32, m), sizes), saved[m]);
        for (unsigned m : {0u, 1u}) {
            keep = layer.backward_input(r.context, r.upload(random_floats(32, 10 + m), sizes), saved[m]);
            if (!deferred) layer.backward_weight(r.context, saved[m]);
        }
        for (unsigned m : {0u, 1u}) {
            if (deferred) layer.backward_weight(r.context, saved[m]);
            saved[m] = {};
        }
        floats all;
        for (parameter* each : layer.parameters()) {
            floats const gradient = r.download(each->gradient);
            all.insert(all.end(), gradient.begin(), gradient.end());
        }
        return all;
    };
    REQUIRE(gradients(true) == gradients(false));
}

TEST_CASE("input gradients free what the weight gradients do not need") {
    rank r;
    gpt::block layer{8, 2, 1};
    r.place(layer);
    copipe::extents const sizes{1, 64, 8};
    gpt::block::saved saved;
    tensor const y = layer.forward(r.context, r.upload(floats(512, 0.5f), sizes), saved);
    REQUIRE(saved.probabilities);
    tensor const dx = layer.backward_input(r.context, y, saved);
    REQUIRE_FALSE(saved.probabilities);
    REQUIRE_FALSE(saved.qkv);
    REQUIRE_FALSE(saved.hidden);
    r.stream.synchronize();
}

TEST_CASE("a model is an embedding, the blocks, and a head tied to the embedding") {
    auto const model = gpt::make_model({.blocks = 3, .width = 12, .heads = 3, .context = 5, .vocabulary = 10});
    REQUIRE(model.size() == 5);
    auto const first = model.make(0);
    auto const last = model.make(4);
    REQUIRE(first.parameters()[0]->tie == last.parameters()[2]->tie);
    REQUIRE_FALSE(first.parameters()[0]->tie.empty());
    REQUIRE(first.parameters()[0]->sizes == last.parameters()[2]->sizes);
    std::size_t count = 0;
    auto const block = model.make(2);
    for (parameter const* each : block.parameters()) count += each->count();
    REQUIRE(count == 12 * 12 * 12 + 13 * 12);
}

TEST_CASE("sizes that no GPT can have are refused in a sentence that names the option") {
    auto const complaint = [](gpt::config const& of) -> std::string {
        try {
            (void)gpt::make_model(of);
        } catch (copipe::error const& failure) {
            return failure.what();
        }
        return "";
    };
    REQUIRE(complaint({}).empty());
    REQUIRE(complaint({.blocks = 0}) == "layers must be at least 1, not 0");
    REQUIRE(complaint({.heads = -2}) == "heads must be at least 1, not -2");
    REQUIRE(complaint({.width = 10, .heads = 4}) ==
            "a width of 10 does not divide into 4 heads: choose a width that is a multiple of the heads");
    rank r;
    gpt::embedding layer{5, 3, 6};
    gpt::embedding::saved saved;
    REQUIRE_THROWS_AS(layer.forward(r.context, r.upload(tokens(4), {1, 4}), saved), gpt::config_error);
}
