// SPDX-License-Identifier: MIT
// Writes the seed files of every fuzz program: write_seeds DIRECTORY makes DIRECTORY/<target>/<number>.
#include <cstdio>
#include <lpo/io/file.hpp>
#include <string>

#include "seeds.hpp"

int main(int count, char** arguments) {
  if (count != 2) {
    std::fputs("usage: write_seeds DIRECTORY\n", stderr);
    return 2;
  }
  for (const fuzz::Target& target : fuzz::targets()) {
    const std::string folder = std::string(arguments[1]) + "/" + target.name;
    lpo::make_directories(folder);
    for (std::size_t i = 0; i < target.seeds.size(); ++i)
      lpo::write_text_file(folder + "/" + std::to_string(i), target.seeds[i]);
  }
  return 0;
}
