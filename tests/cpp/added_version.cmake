# bench_runner with one more row in the registry, for the test that a row is all that a version takes.
file(READ csrc/versions/registry.cpp registry)
set(row "    Strategy{.name = \"mine\",
             .description = \"INT8, three layers to a cache\",
             .use_cache = true,
             .kv_cache_dtype = KvCacheDtype::kInt8,
             .sharing_group = 3},
")
string(REGEX REPLACE "(kVersions = {.*)\n};\n\n}  // namespace" "\\1\n${row}};\n\n}  // namespace" longer "${registry}")
if(longer STREQUAL registry)
  message(FATAL_ERROR "csrc/versions/registry.cpp: expected the table of versions before the end of its namespace")
endif()
file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/tests/added_version.cpp CONTENT "${longer}")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS csrc/versions/registry.cpp)
# Its own registry comes before that in the library, which then is not linked.
add_executable(added_version_runner benchmark/main.cpp ${CMAKE_BINARY_DIR}/tests/added_version.cpp)
target_link_libraries(added_version_runner PRIVATE kvfuse_runner)
set_target_properties(added_version_runner PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
