# With QUANTD_SANITIZE=thread every target links cmake/sanitizers/ ahead of Abseil and gRPC.
if(QUANTD_SANITIZE STREQUAL "thread")
  set(sources "${CMAKE_CURRENT_LIST_DIR}/sanitizers")
  add_library(quantd_tsan SHARED "${sources}/abseil_locks.cc" "${sources}/grpc_callbacks.cc")
  target_link_libraries(quantd_tsan PRIVATE absl::synchronization gRPC::grpc++ ${CMAKE_DL_LIBS})
  link_libraries(quantd_tsan)
  add_link_options(LINKER:--no-as-needed "$<TARGET_FILE:quantd_tsan>")
endif()
