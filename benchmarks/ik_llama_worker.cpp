// The worker of ik_llama.cpp: what benchmarks/worker.py is to the other engines.
//
//     scripts/build_ik_llama.sh
//     build/ik_llama/worker FOLDER GGUF
//
// On two threads, greedy. With REPACK=1 in the environment the weights are interleaved
// at load for the CPU, as ik_llama.cpp's flag -rtr does.

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "llama.h"

namespace {

using Clock = std::chrono::steady_clock;

struct Row {
    llama_token token;
    int position, request;
};

// Requests whose next tokens one call of step() computes, as long as it lives.
class Requests {
  public:
    Requests(llama_model * model, int count, int prompt, int steps) : model_(model) {
        llama_context_params settings = llama_context_default_params();
        settings.n_ctx = (prompt + steps + 256) / 256 * 256 * count;
        settings.n_seq_max = count;
        settings.n_threads = settings.n_threads_batch = 2;
        part_ = settings.n_ubatch;
        context_ = llama_init_from_model(model, settings);
        batch_ = llama_batch_init(part_, 0, 1);
        std::mt19937 random(0);
        std::uniform_int_distribution<int> tokens(300, 31998);
        for (int request = 0; request < count; request++)
            for (int i = 0; i < prompt; i++)
                todo_.push_back({tokens(random), i, request});
        lengths_.assign(count, prompt);
    }

    ~Requests() {
        llama_batch_free(batch_);
        llama_free(context_);
    }

    void step() {
        std::vector<Row> next;
        for (size_t at = 0; at < todo_.size(); at += part_) {
            const size_t rows = std::min<size_t>(part_, todo_.size() - at);
            batch_.n_tokens = rows;
            for (size_t i = 0; i < rows; i++) {
                const Row & row = todo_[at + i];
                batch_.token[i] = row.token;
                batch_.pos[i] = row.position;
                batch_.n_seq_id[i] = 1;
                batch_.seq_id[i][0] = row.request;
                batch_.logits[i] = row.position == lengths_[row.request] - 1;
            }
            if (llama_decode(context_, batch_) != 0) {
                std::cerr << "llama_decode failed" << std::endl;
                std::exit(1);
            }
            for (size_t i = 0; i < rows; i++)
                if (batch_.logits[i]) next.push_back(after(todo_[at + i], i));
        }
        todo_ = std::move(next);
        for (int & length : lengths_) length++;
    }

  private:
    Row after(const Row & row, int i) const {
        const float * logits = llama_get_logits_ith(context_, i);
        const float * best = std::max_element(logits, logits + llama_n_vocab(model_));
        return {llama_token(best - logits), row.position + 1, row.request};
    }

    llama_model * model_;
    llama_context * context_;
    llama_batch batch_;
    size_t part_;
    std::vector<Row> todo_;
    std::vector<int> lengths_;
};

double seconds(Requests & requests) {
    const auto start = Clock::now();
    requests.step();
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// Tokens a second: of the prompt where no step is asked for, else of the steps.
double rate(llama_model * model, int count, int prompt, int steps) {
    Requests requests(model, count, prompt, steps);
    const double first = seconds(requests);
    if (steps == 0) return count * prompt / first;
    std::vector<double> times;
    for (int i = 0; i < steps; i++) times.push_back(seconds(requests));
    std::sort(times.begin(), times.end());
    return count / ((times[(steps - 1) / 2] + times[steps / 2]) / 2);
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc < 3) {
        std::cerr << "worker FOLDER GGUF" << std::endl;
        return 1;
    }
    const std::string path = argv[2];
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    const auto start = Clock::now();
    llama_model_params settings = llama_model_default_params();
    if (std::getenv("REPACK") != nullptr) {
        settings.repack_tensors = true;
        settings.use_mmap = false;
    }
    llama_model * model = llama_model_load_from_file(path.c_str(), settings);
    if (model == nullptr) {
        std::cerr << "cannot load " << path << std::endl;
        return 1;
    }
    const std::chrono::duration<double> loaded = Clock::now() - start;
    std::cout << "{\"loaded\": " << loaded.count() << "}" << std::endl;
    std::string line, measure;
    int count, prompt, steps;
    while (std::getline(std::cin, line) && line != "end") {
        std::istringstream(line) >> measure >> count >> prompt >> steps;
        const double found = rate(model, count, prompt, steps);
        std::cout << "{\"" << measure << "\": " << found << "}" << std::endl;
    }
    std::cout << "{\"end\": {\"weight_bytes\": " << std::filesystem::file_size(path)
              << "}}" << std::endl;
    llama_free_model(model);
}
