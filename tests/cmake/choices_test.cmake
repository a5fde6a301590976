# SPDX-License-Identifier: MIT
# cmake -DSOURCE=<root> -P choices_test.cmake: what lpo_check_choices takes and refuses. With -DLIST=<values>, it checks
# these alone.
cmake_minimum_required(VERSION 3.25)
include(${SOURCE}/cmake/lpo_choices.cmake)

if(DEFINED LIST)
  lpo_check_choices(LIST sd15 tiny)
  message("kept <${LIST}>")
  return()
endif()

function(expect values status text)
  execute_process(COMMAND ${CMAKE_COMMAND} -DSOURCE=${SOURCE} "-DLIST=${values}" -P ${CMAKE_CURRENT_LIST_FILE}
                  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  string(REGEX REPLACE "[ \n]+" " " output "${output}")
  string(FIND "${output}" "${text}" at)
  if(NOT result EQUAL ${status} OR at EQUAL -1)
    message(SEND_ERROR "'${values}' gives ${result}: ${output}")
  endif()
endfunction()
expect("" 0 "kept <>")
expect("sd15;tiny" 0 "kept <sd15;tiny>")
expect("tiny;sd15;tiny" 0 "kept <tiny;sd15>")
expect("sd15;sd15x" 1 "LIST has sd15x; allowed are sd15, tiny")
expect("sd15,tiny" 1 "LIST has sd15,tiny; allowed are sd15, tiny, with semicolons between them")
