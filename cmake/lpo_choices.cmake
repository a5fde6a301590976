# SPDX-License-Identifier: MIT
# lpo_check_choices(VARIABLE ALLOWED...): an error unless each entry of the list VARIABLE is one of ALLOWED. What is listed
# twice is kept once, in the caller's VARIABLE; the cache keeps what the user wrote.
function(lpo_check_choices variable)
  set(chosen ${${variable}})
  foreach(choice IN LISTS chosen)
    if(NOT choice IN_LIST ARGN)
      list(JOIN ARGN ", " allowed)
      message(FATAL_ERROR "lpo: ${variable} has ${choice}; allowed are ${allowed}, with semicolons between them")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES chosen)
  set(${variable} ${chosen} PARENT_SCOPE)
endfunction()
