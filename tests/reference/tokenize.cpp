// SPDX-License-Identifier: MIT
// The C++ half of check_tokenizer.py: prints the ids of every text of a JSON list, one list per line.
#include <cstdio>
#include <string>
#include <vector>

#include <lpo/io/clip_tokenizer.hpp>

int main(int argc, char** argv) {
  if (argc != 4) return std::fprintf(stderr, "usage: tokenize FOLDER basic|fast TEXTS.json\n"), 2;
  const auto cleanup = std::string(argv[2]) == "fast" ? lpo::ClipCleanup::fast : lpo::ClipCleanup::basic;
  const auto tokenizer = lpo::ClipTokenizer::from_directory(argv[1], cleanup);
  const auto texts = lpo::parse_json<lpo::SortedJson>(lpo::read_text_file(argv[3]), "tokenize", argv[3]);
  for (const auto& text : texts)
    std::printf("%s\n", lpo::SortedJson(tokenizer.tokenize(text.get<std::string>())).dump().c_str());
}
