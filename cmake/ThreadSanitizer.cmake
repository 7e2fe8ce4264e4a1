# With QUANTD_SANITIZE=thread every target links cmake/sanitizers/abseil_locks.cc ahead of Abseil.
if(QUANTD_SANITIZE STREQUAL "thread")
  add_library(quantd_tsan_abseil SHARED "${CMAKE_CURRENT_LIST_DIR}/sanitizers/abseil_locks.cc")
  target_link_libraries(quantd_tsan_abseil PRIVATE absl::synchronization ${CMAKE_DL_LIBS})
  link_libraries(quantd_tsan_abseil)
  add_link_options(LINKER:--no-as-needed "$<TARGET_FILE:quantd_tsan_abseil>")
endif()
