# SPDX-License-Identifier: Apache-2.0
# Fails if a document does not show a program's output word for word: cmake -D PROGRAM=... -D DOCUMENT=... -P this
execute_process(COMMAND ${PROGRAM} OUTPUT_VARIABLE printed COMMAND_ERROR_IS_FATAL ANY)
file(READ ${DOCUMENT} document)
string(FIND "${document}" "${printed}" place)
if(place EQUAL -1)
    message(FATAL_ERROR "${DOCUMENT} does not show what ${PROGRAM} prints now:\n${printed}")
endif()
