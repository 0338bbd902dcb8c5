// SPDX-License-Identifier: Apache-2.0
// The matrix products of the GPT on a GPU, in 32 bits and in bf16, on fakes of CUDA and cuBLASLt.
#include "catch.hpp"
#include "cuda/fake_cublas.hpp"
#include "examples/reference.hpp"
#include "says.hpp"
#include "temporary_folder.hpp"

#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/train/cuda_update.hpp"
#include "copipe/train/profile.hpp"
#include "copipe/train/trainer.hpp"
#include "gpt/cuda/layers.hpp"
#include "gpt/model.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

using namespace copipe;
using reference::floats;
using reference::random_floats;

namespace {

/// The nearest number that has 8 significant bits, the even one of two: what bf16 is, said without bits.
auto nearest_bf16(float x) -> float {
    if (x == 0 || !std::isfinite(x)) return x;
    int exponent = 0;
    static_cast<void>(std::frexp(x, &exponent)); // |x| in [0.5, 1) times 2^exponent
    double const unit = std::ldexp(1.0, std::max(exponent - 8, -133));
    double const rounded = std::nearbyint(static_cast<double>(x) / unit) * unit; // to even in halfway cases
    return static_cast<float>(rounded);
}
auto nearest_bf16(floats values) -> floats {
    for (float& each : values) each = nearest_bf16(each);
    return values;
}

/// A GPU, a stream of it, and arrays there.
struct bench {
    fake::machine gpus{fake::drive::by_test};
    cuda_device dev{{.polling = cuda_polling::by_program, .make_stream = {}}};
    cuda_stream& stream = dev.open_stream("test");
    context<cuda_device> work{.stream = stream};

    explicit bench(gpt::precision how) {
        gpt::gpu_precision() = how;
        static_cast<void>(fake::take_products());
    }
    bench(bench const&) = delete;
    auto operator=(bench const&) -> bench& = delete;
    ~bench() { gpt::gpu_precision() = gpt::precision::f32; }

    auto put(floats const& values) -> tensor {
        tensor t = work.make({static_cast<std::int64_t>(values.size())});
        stream.copy(t.data(), values.data(), t.bytes());
        return t;
    }
    auto get(tensor const& t) -> floats {
        floats values(t.count());
        stream.copy(values.data(), t.data(), t.bytes());
        stream.synchronize();
        return values;
    }
    auto kernels() const -> std::uint64_t { return gpus.calls("kernel"); }
};

void require_near(floats const& found, floats const& expected, double bound) {
    REQUIRE(found.size() == expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) REQUIRE(std::abs(found[i] - expected[i]) < bound);
}

constexpr std::size_t advised = std::size_t{32} << 20U; // bytes of workspace, for cuBLASLt on Hopper

} // namespace

TEST_CASE("numbers are rounded to the nearest of bf16, ties to even, each column from 16 bytes on and zeros between") {
    bench on{gpt::precision::bf16};
    std::mt19937 random{1};
    floats values(3 * 20 * 2);
    for (float& each : values) {
        do each = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
        while (!std::isfinite(nearest_bf16(each)));
    }
    floats const special{1.00390625F, 1.01171875F, -1.00390625F, 0.0F, -0.0F,
                         1e-45F,      9.2e-41F,    INFINITY,     -INFINITY, NAN};
    std::copy(special.begin(), special.end(), values.begin());
    gpt::operand const x{.rows = 11, .columns = 3, .lead = 20, .batches = 2, .stride = 60}; // 16 in a column
    std::vector<std::uint16_t> copies(2 * 3 * 16, 0x7fc0);
    tensor const from = on.put(values);
    on.stream.launch("round", [&](cudaStream_t s) {
        gpt::on_gpu::round_to_bf16({s, gpt::precision::bf16, nullptr, 0}, x, from.data(), copies.data());
    });
    on.stream.synchronize();
    REQUIRE(gpt::bytes_in_bf16(x) == 256); // 192, up to the next multiple
    for (std::size_t i = 0; i < copies.size(); ++i) {
        std::size_t const column = i / 16, row = i % 16;
        float const found = std::bit_cast<float>(std::uint32_t{copies[i]} << 16U);
        float const expected = row < 11 ? nearest_bf16(values[column * 20 + row]) : 0;
        INFO(values[column * 20 + row] << " at row " << row << " of column " << column);
        CHECK((std::isnan(expected) ? std::isnan(found)
                                    : found == expected && std::signbit(found) == std::signbit(expected)));
    }
}

TEST_CASE("in bf16 a linear map multiplies rounded factors, sums in 32 bits, and leaves the weights as they are") {
    auto const s = GENERATE(gpt::linear_shape{8, 16, 24}, gpt::linear_shape{5, 3, 4}, gpt::linear_shape{7, 33, 9});
    auto const how = GENERATE(gpt::precision::bf16, gpt::precision::f32);
    bool const rounds = how == gpt::precision::bf16;
    auto const factor = [&](floats const& x) { return rounds ? nearest_bf16(x) : x; };
    bench on{how};
    floats const x = random_floats(s.rows * s.in, 1), weight = random_floats(s.in * s.out, 2),
                 bias = random_floats(s.out, 3), dy = random_floats(s.rows * s.out, 4),
                 dweight = random_floats(s.in * s.out, 5);
    tensor const gx = on.put(x), gw = on.put(weight), gb = on.put(bias), gdy = on.put(dy), gdw = on.put(dweight),
                 y = on.put(dy), dx = on.put(x);
    floats y_cpu = dy, dx_cpu = x, dweight_cpu = dweight;

    auto const before = on.kernels();
    gpt::launch<gpt::linear_forward>(on.work, s, gx, gw, gb, y);
    CHECK(on.kernels() - before == (rounds ? 3 : 1));
    gpt::linear_forward(s, factor(x).data(), factor(weight).data(), bias.data(), y_cpu.data());
    require_near(on.get(y), y_cpu, 1e-5);

    gpt::launch<gpt::linear_backward_input>(on.work, s, gdy, gw, dx);
    gpt::linear_backward_input(s, factor(dy).data(), factor(weight).data(), dx_cpu.data());
    require_near(on.get(dx), dx_cpu, 1e-5);

    gpt::launch<gpt::linear_backward_weight>(on.work, s, gx, gdy, gdw, nullptr);
    gpt::linear_backward_weight(s, factor(x).data(), factor(dy).data(), dweight_cpu.data(), nullptr);
    require_near(on.get(gdw), dweight_cpu, 1e-5);

    CHECK(on.get(gw) == weight);
    for (auto const& each : fake::take_products()) {
        CHECK(each.factors == (rounds ? CUDA_R_16BF : CUDA_R_32F));
        CHECK(each.workspace >= advised); // what rounding takes is not taken from it
    }
}

TEST_CASE("attention on a GPU is the CPU's in 32 bits and, within bf16's digits, in bf16, forward and backward") {
    auto const s = GENERATE(gpt::attention_shape{2, 8, 16, 2}, gpt::attention_shape{1, 5, 9, 3});
    auto const how = GENERATE(gpt::precision::bf16, gpt::precision::f32);
    double const bound = how == gpt::precision::bf16 ? 3e-2 : 1e-5;
    bench on{how};
    int const rows = s.batch * s.time * s.channels;
    floats const qkv = random_floats(3 * rows, 1), dy = random_floats(rows, 2);
    floats y(dy.size()), dqkv(qkv.size());
    floats p(static_cast<std::size_t>(s.probabilities())), scratch(static_cast<std::size_t>(s.scratch()));
    gpt::attention_forward(s, qkv.data(), y.data(), p.data());
    gpt::attention_backward(s, dy.data(), qkv.data(), p.data(), dqkv.data(), scratch.data());

    tensor const gqkv = on.put(qkv), gdy = on.put(dy), gy = on.put(y), gp = on.put(p), gdqkv = on.put(dqkv),
                 working = on.work.make({s.heads, s.time, s.time});
    gpt::launch<gpt::attention_forward>(on.work, s, gqkv, gy, gp);
    gpt::launch<gpt::attention_backward>(on.work, s, gdy, gqkv, gp, gdqkv, working);
    require_near(on.get(gy), y, bound);
    require_near(on.get(gp), p, bound);
    require_near(on.get(gdqkv), dqkv, bound);
    auto const products = fake::take_products();
    CHECK(products.size() == static_cast<std::size_t>(6 * s.batch));
    for (auto const& each : products) {
        CHECK(each.factors == (how == gpt::precision::bf16 ? CUDA_R_16BF : CUDA_R_32F));
        CHECK(each.workspace >= advised);
    }
}

TEST_CASE("a product in bf16 without memory for its rounded factors is refused in one sentence") {
    bench on{gpt::precision::bf16};
    tensor const x = on.put(random_floats(64, 1));
    gpt::gpu const small{on.stream.handle(), gpt::precision::bf16, x.data<void>(), x.bytes()};
    CHECK_THROWS_WITH(gpt::on_gpu::linear_forward(small, {8, 8, 8}, x.data(), x.data(), nullptr, x.data()),
                      says("needs 512 bytes of working memory and got 256"));
}

namespace {

constexpr gpt::config small{.blocks = 2, .width = 16, .heads = 2, .context = 4, .vocabulary = 32};
constexpr int weights = 4 * small.blocks + 1; // that products multiply by; those of the embedding are looked up

struct letters {
    [[nodiscard]] static auto size() -> std::uint64_t { return 100; }
    static void load(std::uint64_t index, host_array& input, host_array& target) {
        auto* const now = input.resize<std::int32_t>({1, small.context}, dtype::i32);
        auto* const next = target.resize<std::int32_t>({1, small.context}, dtype::i32);
        for (int i = 0; i < small.context; ++i) {
            now[i] = (static_cast<int>(index) + i) % small.vocabulary;
            next[i] = (now[i] + 1) % small.vocabulary;
        }
    }
};

struct in_bf16 {
    fake::machine gpus{fake::drive::by_thread};
    in_bf16() { gpt::gpu_precision() = gpt::precision::bf16; }
    in_bf16(in_bf16 const&) = delete;
    auto operator=(in_bf16 const&) -> in_bf16& = delete;
    ~in_bf16() { gpt::gpu_precision() = gpt::precision::f32; }
};

using gpt_trainer = trainer<dualpipe_v, cuda_device>;

} // namespace

TEST_CASE("in bf16 a step rounds each weight once, however many micro-batches and products it is in") {
    in_bf16 const on;
    auto const rounds = [&](int micro_batches) {
        gpt_trainer trained{gpt::make_model<cuda_device>(small), {.ranks = 2, .micro_batches = micro_batches}};
        trained.step(letters{});
        auto const before = on.gpus.launches("round_to_bf16");
        trained.step(letters{});
        auto const trains = on.gpus.launches("round_to_bf16") - before;
        trained.evaluate(letters{});
        auto const evaluates = on.gpus.launches("round_to_bf16") - before - trains;
        return std::pair{static_cast<int>(trains), static_cast<int>(evaluates)};
    };
    auto const [six, six_forward] = rounds(6);
    auto const [eight, eight_forward] = rounds(8);
    CHECK(4 * six - 3 * eight == weights); // the rest is a micro-batch's own
    CHECK(4 * six_forward - 3 * eight_forward == weights);
}

TEST_CASE("in bf16 a step multiplies by the weights as the one before has left them") {
    in_bf16 const on;
    temporary_folder const folder;
    std::string const file = folder / "checkpoint.safetensors";
    auto const model = gpt::make_model<cuda_device>(small);
    trainer_options<cuda_device> const training{.ranks = 2, .micro_batches = 6};
    auto const made = [&] { return std::make_unique<gpt_trainer>(model, training); };
    auto const trained = made(), used = made(), fresh = made();
    for (int i = 0; i < 3; ++i) trained->step(letters{});
    used->step(letters{});
    trained->save(file);
    used->load(file);
    fresh->load(file);
    for (int i = 0; i < 2; ++i) {
        double const loss = fresh->evaluate(letters{});
        CHECK(trained->evaluate(letters{}) == loss);
        CHECK(used->evaluate(letters{}) == loss);
        for (auto const* each : {&trained, &used, &fresh}) (*each)->step(letters{});
    }
}

TEST_CASE("in bf16 the profile of a layer counts the copies of its weights, two bytes for each number") {
    in_bf16 const on;
    auto const model = gpt::make_model<cuda_device>(small);
    auto const profile = profile_layers(model, letters{}, 1);
    std::size_t const block = 12 * small.width * small.width, head = small.width * small.vocabulary;
    CHECK(profile[0].derived_bytes == 0);
    CHECK(profile[1].derived_bytes == 2 * block);
    CHECK(profile[3].derived_bytes == 2 * head);
    gpt::gpu_precision() = gpt::precision::f32;
    CHECK(profile_layers(model, letters{}, 1)[1].derived_bytes == 0);
}
