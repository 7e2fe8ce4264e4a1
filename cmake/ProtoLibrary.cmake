# quantd_proto_library(NAME ROOT dir PROTOS file...)
#
# One static library of the C++ messages and gRPC stubs of PROTOS. ROOT is the import root: the
# files are named relative to it ("quantd/v1/jobs.proto"), and includes are "quantd/v1/jobs.pb.h"
# and, for files that declare a service, "quantd/v1/jobs.grpc.pb.h".
# The generated code is a system include and compiled without warnings.
function(quantd_proto_library NAME)
  cmake_parse_arguments(ARG "" "ROOT" "PROTOS" ${ARGN})
  cmake_path(ABSOLUTE_PATH ARG_ROOT NORMALIZE OUTPUT_VARIABLE root)
  set(generated "${CMAKE_CURRENT_BINARY_DIR}/generated")
  file(MAKE_DIRECTORY "${generated}")
  list(TRANSFORM ARG_PROTOS PREPEND "${root}/" OUTPUT_VARIABLE files)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${files})

  set(sources)
  foreach(proto file IN ZIP_LISTS ARG_PROTOS files)
    string(REGEX REPLACE "\\.proto$" "" stem "${generated}/${proto}")
    set(outputs "${stem}.pb.cc" "${stem}.pb.h")
    set(grpc)
    file(STRINGS "${file}" services REGEX "^service ")
    if(services)
      list(APPEND outputs "${stem}.grpc.pb.cc" "${stem}.grpc.pb.h")
      set(grpc "--grpc_out=${generated}"
               "--plugin=protoc-gen-grpc=$<TARGET_FILE:gRPC::grpc_cpp_plugin>")
    endif()
    add_custom_command(
      OUTPUT ${outputs}
      COMMAND protobuf::protoc "--proto_path=${root}" "--cpp_out=${generated}" ${grpc} "${proto}"
      DEPENDS ${files}  # coarse: imports between the files need no bookkeeping
      COMMENT "protoc ${proto}"
      VERBATIM)
    list(APPEND sources ${outputs})
  endforeach()

  add_library(${NAME} STATIC ${sources})
  target_include_directories(${NAME} SYSTEM PUBLIC "${generated}")
  target_compile_options(${NAME} PRIVATE -w)
  target_link_libraries(${NAME} PUBLIC gRPC::grpc++ protobuf::libprotobuf)
endfunction()
