//! Policies of the caller's: Python objects in page mode.

use std::sync::Arc;

use kvlab_core::sim::page::{Context, Departure, PageId, PagePolicy, TierIndex};
use kvlab_core::{Error, Result};
use parking_lot::Mutex;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString, PyTuple};

use crate::error::to_py;

/// What a policy of the caller's may look at. One object serves a whole run; it says what is so during the call.
#[pyclass(name = "PolicyContext", module = "kvlab._core", frozen)]
#[derive(Debug)]
pub(crate) struct PyPolicyContext {
    tiers: Vec<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    step: u64,
    free: Vec<u64>,
    /// The fastest tier of each page.
    places: Vec<Option<TierIndex>>,
}

#[pymethods]
impl PyPolicyContext {
    #[getter]
    fn step(&self) -> u64 {
        self.state.lock().step
    }

    #[getter]
    fn tiers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.tiers)
    }

    fn tier_of(&self, page: usize) -> PyResult<Option<&str>> {
        let state = self.state.lock();
        let place = state.places.get(page).ok_or_else(|| {
            to_py(&Error::invalid(format!(
                "page {page} is not one of {} pages",
                state.places.len()
            )))
        })?;
        Ok(place.map(|tier| self.tiers[tier].as_str()))
    }

    fn free_bytes(&self, tier: &str) -> PyResult<u64> {
        let Some(place) = self.tiers.iter().position(|name| name == tier) else {
            return Err(to_py(&Error::invalid(format!(
                "tier {tier:?} is unknown; use one of: {}",
                self.tiers.join(", ")
            ))));
        };
        Ok(self.state.lock().free[place])
    }
}

/// The first exception of a policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Raised(Arc<Mutex<Option<PyErr>>>);

impl Raised {
    pub(crate) fn is_clear(&self) -> bool {
        self.0.lock().is_none()
    }

    /// Raises it.
    pub(crate) fn take(&self) -> PyResult<()> {
        self.0.lock().take().map_or(Ok(()), Err)
    }

    fn keep(&self, error: PyErr) {
        self.0.lock().get_or_insert(error);
    }
}

/// The hooks that a policy may leave as `PolicyBase` has them, which is to do nothing.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "one for each hook")]
struct Hooks {
    access: bool,
    miss: bool,
    insert: bool,
    evict: bool,
    promote: bool,
    prefetch: bool,
}

/// A Python object as a policy. After its first exception it is not called again.
#[derive(Debug)]
pub(crate) struct CallerPolicy {
    policy: Py<PyAny>,
    pages: Py<PyList>,
    names: Vec<Py<PyString>>,
    context: Py<PyPolicyContext>,
    hooks: Hooks,
    raised: Raised,
}

impl CallerPolicy {
    pub(crate) fn new(
        policy: &Bound<'_, PyAny>,
        pages: &Bound<'_, PyList>,
        tiers: &[&str],
    ) -> PyResult<Self> {
        let py = policy.py();
        let base = py.import("kvlab.sim.policy")?.getattr("PolicyBase")?;
        let class = policy.get_type();
        let own = |hook: &str| -> PyResult<bool> {
            let inherited = class.getattr(hook)?.is(base.getattr(hook)?);
            // A hook may also be set on the object.
            Ok(!inherited || policy.getattr(hook)?.getattr_opt("__func__")?.is_none())
        };
        let hooks = Hooks {
            access: own("on_access")?,
            miss: own("on_miss")?,
            insert: own("on_insert")?,
            evict: own("on_evict")?,
            promote: own("on_promote")?,
            prefetch: own("maybe_prefetch")?,
        };
        let context = PyPolicyContext {
            tiers: tiers.iter().map(|&name| name.to_owned()).collect(),
            state: Mutex::default(),
        };
        let name = |name: &&str| PyString::new(py, name).unbind();
        Ok(Self {
            policy: policy.clone().unbind(),
            pages: pages.clone().unbind(),
            names: tiers.iter().map(name).collect(),
            context: Py::new(py, context)?,
            hooks,
            raised: Raised::default(),
        })
    }

    pub(crate) fn raised(&self) -> Raised {
        self.raised.clone()
    }

    /// Attaches, lets the context say what is so, and calls; none if there was an exception now or before.
    fn call<T>(
        &self,
        context: &Context<'_>,
        function: impl FnOnce(Python<'_>, &Bound<'_, PyAny>, &Bound<'_, PyPolicyContext>) -> PyResult<T>,
    ) -> Option<T> {
        if !self.raised.is_clear() {
            return None;
        }
        Python::attach(|py| {
            let seen = self.context.bind(py);
            {
                let mut state = seen.get().state.lock();
                state.step = context.step;
                let tiers = 0..self.names.len();
                state.free.clear();
                state
                    .free
                    .extend(tiers.map(|tier| context.residency.free_bytes(tier)));
            }
            function(py, self.policy.bind(py), seen)
                .inspect_err(|error| self.raised.keep(error.clone_ref(py)))
                .ok()
        })
    }

    fn page<'py>(&self, py: Python<'py>, page: PageId) -> PyResult<Bound<'py, PyAny>> {
        self.pages.bind(py).get_item(page as usize)
    }

    fn name<'py>(&self, py: Python<'py>, tier: TierIndex) -> &Bound<'py, PyString> {
        self.names[tier].bind(py)
    }

    /// Remembers where the page is.
    fn moved(&self, context: &Context<'_>, page: PageId) {
        let mut state = self.context.get().state.lock();
        state.places[page as usize] = context.residency.find(page);
    }
}

impl PagePolicy for CallerPolicy {
    fn reserve(&mut self, pages: usize, _tiers: usize) {
        self.context.get().state.lock().places.resize(pages, None);
    }

    fn on_access(&mut self, context: &Context<'_>, page: PageId, hit_tier: Option<TierIndex>) {
        if self.hooks.access {
            self.call(context, |py, policy, seen| {
                let tier = hit_tier.map(|tier| self.name(py, tier));
                let args = (seen, self.page(py, page)?, tier);
                policy
                    .call_method1(intern!(py, "on_access"), args)
                    .map(drop)
            });
        }
    }

    fn on_miss(&mut self, context: &Context<'_>, page: PageId) {
        if self.hooks.miss {
            self.call(context, |py, policy, seen| {
                let args = (seen, self.page(py, page)?);
                policy.call_method1(intern!(py, "on_miss"), args).map(drop)
            });
        }
    }

    fn on_insert(&mut self, context: &Context<'_>, page: PageId, tier: TierIndex) {
        if self.hooks.insert {
            self.call(context, |py, policy, seen| {
                let args = (seen, self.page(py, page)?, self.name(py, tier));
                policy
                    .call_method1(intern!(py, "on_insert"), args)
                    .map(drop)
            });
        }
    }

    fn on_evict(&mut self, context: &Context<'_>, page: PageId, tier: TierIndex) {
        if self.hooks.evict {
            self.call(context, |py, policy, seen| {
                let args = (seen, self.page(py, page)?, self.name(py, tier));
                policy.call_method1(intern!(py, "on_evict"), args).map(drop)
            });
        }
    }

    fn on_promote(&mut self, context: &Context<'_>, page: PageId, from: TierIndex) {
        if self.hooks.promote {
            self.call(context, |py, policy, seen| {
                let args = (
                    seen,
                    self.page(py, page)?,
                    self.name(py, from),
                    self.name(py, 0),
                );
                policy
                    .call_method1(intern!(py, "on_promote"), args)
                    .map(drop)
            });
        }
    }

    fn entered(&mut self, context: &Context<'_>, page: PageId, _tier: TierIndex) {
        self.moved(context, page);
    }

    fn left(&mut self, context: &Context<'_>, page: PageId, _tier: TierIndex, _why: Departure) {
        self.moved(context, page);
    }

    fn select_eviction_candidate(
        &mut self,
        context: &Context<'_>,
        tier: TierIndex,
        incoming: PageId,
    ) -> Result<PageId> {
        let chosen = self.call(context, |py, policy, seen| {
            let residents = context.residency.residents(tier);
            let candidates = residents.map(|page| self.page(py, page));
            let candidates = PyList::new(py, candidates.collect::<PyResult<Vec<_>>>()?)?;
            let args = (
                seen,
                self.name(py, tier),
                candidates,
                self.page(py, incoming)?,
            );
            let chosen = policy.call_method1(intern!(py, "select_eviction_candidate"), args)?;
            chosen.getattr(intern!(py, "id"))?.extract::<PageId>()
        });
        chosen.ok_or_else(|| Error::invalid("the policy raised an exception; see there"))
    }

    fn maybe_prefetch(&mut self, context: &Context<'_>, page: PageId, wanted: &mut Vec<PageId>) {
        if self.hooks.prefetch {
            self.call(context, |py, policy, seen| {
                let args = (seen, self.page(py, page)?);
                let pages = policy.call_method1(intern!(py, "maybe_prefetch"), args)?;
                for page in pages.try_iter()? {
                    wanted.push(page?.extract()?);
                }
                Ok(())
            });
        }
    }
}
