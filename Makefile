# Two commands do all set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt
DEMO ?= demo

.PHONY: demo test test-slow lint docs bench wheel-check clean

# One stamp for each set of packages; a change of the pins or of pyproject.toml renews it.
$(VENV)/installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) pip
	$(PIP) --editable .
	touch $@

$(VENV)/installed-%: $(VENV)/installed
	$(PIP) --group $*
	touch $@

demo: $(VENV)/installed
	$(BIN)/cambrian train gpt-demo --out $(DEMO)/gpt --force
	$(BIN)/cambrian export $(DEMO)/gpt $(DEMO)/gpt-onnx --force
	$(BIN)/cambrian verify $(DEMO)/gpt-onnx
	$(BIN)/cambrian run $(DEMO)/gpt-onnx "The following" --set do_sample=true --set temperature=0.7 --set max_new_tokens=120 --seed 1
	@echo
	@echo "What this did: trained a small GPT on Python's own language reference, exported it to ONNX,"
	@echo "proved the export equal to the model, and generated the text above with ONNX Runtime."
	@echo "  model, safetensors   $(DEMO)/gpt            (loss curve: $(DEMO)/gpt/train/loss.svg)"
	@echo "  ONNX artifact        $(DEMO)/gpt-onnx       (receipt: $(DEMO)/gpt-onnx/manifest.json)"
	@echo "Go on: $(BIN)/cambrian list;  $(BIN)/cambrian run $(DEMO)/gpt-onnx 'The statement'"

test: $(VENV)/installed-test
	$(BIN)/python -m pytest --cambrian cambrian -m "not slow and not cambrian_long" \
		--numprocesses 2 --dist loadscope

test-slow: $(VENV)/installed-test $(VENV)/installed-examples
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m pytest --cambrian cambrian -m cambrian_long --numprocesses 2 --dist loadscope

lint: $(VENV)/installed-lint $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/codespell

docs: $(VENV)/installed-docs
	$(BIN)/python docs/generate.py --check
	$(BIN)/sphinx-build -W --keep-going -n -q docs build/docs
	@echo "build/docs/index.html"

bench: $(VENV)/installed-test $(VENV)/installed-bench
	$(BIN)/python tests/benchmarks/run.py

clean:
	rm -rf $(VENV) $(DEMO) build dist
