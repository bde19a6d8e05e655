# Compiler settings and the helpers that declare targets with their dependencies.

find_program(COGUMI_CCACHE ccache)
if(COGUMI_CCACHE)
  set(CMAKE_C_COMPILER_LAUNCHER ${COGUMI_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${COGUMI_CCACHE})
endif()

add_library(cogumi_flags INTERFACE)
target_compile_options(cogumi_flags INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wconversion)
if(COGUMI_WERROR)
  target_compile_options(cogumi_flags INTERFACE -Werror)
endif()

# For the presets asan and tsan. Instrumented code at -O2 -g takes 2.7 times as long to compile.
set(CMAKE_C_FLAGS_SANITIZE "-O1 -g1 -DNDEBUG")
set(CMAKE_CXX_FLAGS_SANITIZE "-O1 -g1 -DNDEBUG")

if(COGUMI_SANITIZE)
  add_compile_options(-fsanitize=${COGUMI_SANITIZE} -fno-omit-frame-pointer)
  # GCC warns of what its instrumentation hides from it (in Boost.Beast); other builds keep the check.
  target_compile_options(cogumi_flags INTERFACE -Wno-maybe-uninitialized)
  add_link_options(-fsanitize=${COGUMI_SANITIZE})
endif()

# cogumi_library(NAME SRCS a.cc ... DEPS target ...): a static library cogumi_NAME, alias
# cogumi::NAME, with includes from the repository root and from engine/include.
function(cogumi_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  add_library(cogumi_${name} STATIC ${ARG_SRCS})
  add_library(cogumi::${name} ALIAS cogumi_${name})
  target_include_directories(cogumi_${name} PUBLIC ${CMAKE_SOURCE_DIR}
                                                   ${CMAKE_SOURCE_DIR}/engine/include)
  target_link_libraries(cogumi_${name} PUBLIC ${ARG_DEPS} PRIVATE cogumi_flags)
endfunction()

# cogumi_binary(NAME SRCS ... DEPS ...): an executable in build/bin.
function(cogumi_binary name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/engine/include)
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} cogumi_flags)
endfunction()

# cogumi_test(NAME SRCS ... DEPS ... [LABELS l ...]): a GoogleTest binary, registered with ctest as
# one test per binary; labels choose subsets of ./test (unit, kernels, services, fuzz).
function(cogumi_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/engine/include)
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gtest GTest::gmock GTest::gtest_main
                                        cogumi_flags)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()
