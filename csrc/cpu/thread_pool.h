#pragma once
namespace airi::cpu {
int num_threads();
}
