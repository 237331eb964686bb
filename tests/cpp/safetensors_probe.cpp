// Reads paths from standard input and prints for each "ok" or "refused: <message>": the reader as a filter.
#include <exception>
#include <iostream>
#include <string>

#include "csrc/model/safetensors.h"

int main() {
  for (std::string path; std::getline(std::cin, path);) {
    try {
      kvfuse::SafetensorsFile::open(path);
      std::cout << "ok" << std::endl;
    } catch (const kvfuse::ModelFileError& error) {
      std::cout << "refused: " << error.what() << std::endl;
    }
  }
}
