// Templates, exceptions, threads, static and virtual functions: what names have to cope with.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace shop {
template <typename Key, typename Value>
struct Shelf {
    std::map<Key, std::vector<Value>> held;
    __attribute__((noinline)) void put(const Key& key, Value value) { held[key].push_back(std::move(value)); }
    __attribute__((noinline)) size_t count() const {
        size_t sum = 0;
        for (const auto& pair : held) sum += pair.second.size();
        return sum;
    }
};
struct Shape {
    virtual ~Shape() = default;
    virtual double area(double scale) const = 0;
};
template <int Sides>
struct Polygon : Shape {
    double area(double scale) const override {
        double sum = 0;
        for (int side = 0; side < Sides; ++side) sum += scale * side;
        return sum;
    }
};
__attribute__((noinline)) int refuse(int number) {
    if (number % 3 == 0) throw std::runtime_error("no " + std::to_string(number));
    return number;
}
static __attribute__((noinline)) int careful(int number) {
    try {
        return refuse(number);
    } catch (const std::exception& error) {
        return static_cast<int>(std::string(error.what()).size());
    }
}
}  // namespace shop

template <typename... Parts>
__attribute__((noinline)) long together(Parts... parts) {
    return (0L + ... + static_cast<long>(parts));
}

std::atomic<long> total{0};

static __attribute__((noinline)) void work(int rounds) {
    shop::Shelf<std::string, int> shelf;
    shop::Shelf<int, std::string> other;
    std::vector<std::unique_ptr<shop::Shape>> shapes;
    shapes.push_back(std::make_unique<shop::Polygon<3>>());
    shapes.push_back(std::make_unique<shop::Polygon<4>>());
    for (int round = 0; round < rounds; ++round) {
        shelf.put(std::to_string(round % 97), round);
        other.put(round % 89, "value");
        for (const auto& shape : shapes) total += static_cast<long>(shape->area(round));
        total += shop::careful(round) + together(round, 1.5, 'c');
    }
    std::vector<int> numbers(rounds);
    for (int& number : numbers) number = static_cast<int>(total.load() * 31 + numbers.size());
    std::sort(numbers.begin(), numbers.end(), [](int a, int b) { return a > b; });
    total += static_cast<long>(shelf.count() + other.count());
}

int main() {
    std::puts("ready");
    std::fflush(stdout);
    std::thread thread([] { for (;;) work(1000); });
    for (;;) work(2000);
}
