//! The structures against the header that Debian has, where it is installed (libibverbs-dev).

use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use fake_verbs::Fabric;
use fake_verbs::abi::*;

/// Each line: what C says of it, and what Rust says.
macro_rules! layout {
    ($($ours:ident = $theirs:literal { $($field:ident $(: $name:literal)?)* })*) => {
        vec![$(
            (format!("sizeof(struct {})", $theirs), size_of::<$ours>()),
            $((format!("offsetof(struct {}, {})", $theirs, [$($name,)? stringify!($field)][0]),
               offset_of!($ours, $field)),)*
        )*]
    };
}

fn lines() -> Vec<(String, usize)> {
    let mut lines = layout! {
        Device = "ibv_device" { node_type transport_type name dev_name dev_path ibdev_path }
        Ops = "ibv_context_ops" { poll_cq post_send post_recv }
        Context = "ibv_context" { device ops cmd_fd async_fd num_comp_vectors mutex abi_compat }
        Pd = "ibv_pd" { context handle }
        Mr = "ibv_mr" { context pd addr length handle lkey rkey }
        Cq = "ibv_cq" { context channel cq_context handle cqe mutex cond comp_events_completed async_events_completed }
        Qp = "ibv_qp" { context qp_context pd send_cq recv_cq srq handle qp_num state qp_type mutex cond events_completed }
        SendWr = "ibv_send_wr" { wr_id next sg_list num_sge opcode send_flags imm_data rest: "wr" }
        RecvWr = "ibv_recv_wr" { wr_id next sg_list num_sge }
        QpInitAttr = "ibv_qp_init_attr" { qp_context send_cq recv_cq srq cap qp_type sq_sig_all }
        DeviceAttr = "ibv_device_attr" {
            fw_ver node_guid max_mr_size page_size_cap vendor_id hw_ver max_qp max_qp_wr max_sge max_cq max_cqe max_mr
            max_pd max_srq max_srq_wr max_pkeys local_ca_ack_delay phys_port_cnt
        }
        Sge = "ibv_sge" { addr length lkey }
        Wc = "ibv_wc" {
            wr_id status opcode vendor_err byte_len imm_data qp_num src_qp wc_flags pkey_index slid sl dlid_path_bits
        }
        QpCap = "ibv_qp_cap" { max_send_wr max_recv_wr max_send_sge max_recv_sge max_inline_data }
        GlobalRoute = "ibv_global_route" { dgid flow_label sgid_index hop_limit traffic_class }
        AhAttr = "ibv_ah_attr" { grh dlid sl src_path_bits static_rate is_global port_num }
        QpAttr = "ibv_qp_attr" {
            qp_state cur_qp_state path_mtu path_mig_state qkey rq_psn sq_psn dest_qp_num qp_access_flags cap ah_attr
            alt_ah_attr pkey_index alt_pkey_index en_sqd_async_notify sq_draining max_rd_atomic max_dest_rd_atomic
            min_rnr_timer port_num timeout retry_cnt rnr_retry alt_port_num alt_timeout rate_limit
        }
    };
    lines.push((String::from("sizeof(union ibv_gid)"), size_of::<Gid>()));
    macro_rules! port {
        ($($field:ident)*) => {
            $(lines.push((format!("offsetof(struct ibv_port_attr, {})", stringify!($field)), offset_of!(PortAttr, $field)));)*
        };
    }
    // the header's structure goes on
    port!(state max_mtu active_mtu gid_tbl_len port_cap_flags max_msg_sz bad_pkey_cntr qkey_viol_cntr pkey_tbl_len lid);
    port!(sm_lid lmc max_vl_num sm_sl subnet_timeout init_type_reply active_width active_speed phys_state link_layer flags);
    macro_rules! number {
        ($($name:literal = $value:expr,)*) => { $(lines.push((String::from($name), $value as usize));)* };
    }
    number! {
        "IBV_QPT_RC" = RC, "IBV_QPT_UC" = UC, "IBV_ACCESS_LOCAL_WRITE" = LOCAL_WRITE, "IBV_WR_SEND" = SEND,
        "IBV_WR_SEND_WITH_IMM" = SEND_WITH_IMM, "IBV_SEND_SIGNALED" = SIGNALED, "IBV_SEND_INLINE" = INLINE,
        "IBV_WC_RECV" = WC_RECV, "IBV_WC_WITH_IMM" = WC_WITH_IMM, "IBV_WC_LOC_LEN_ERR" = status::LOC_LEN_ERR,
        "IBV_WC_LOC_PROT_ERR" = status::LOC_PROT_ERR, "IBV_WC_WR_FLUSH_ERR" = status::WR_FLUSH_ERR,
        "IBV_WC_REM_INV_REQ_ERR" = status::REM_INV_REQ_ERR, "IBV_WC_RETRY_EXC_ERR" = status::RETRY_EXC_ERR,
        "IBV_WC_GENERAL_ERR" = status::GENERAL_ERR, "IBV_QPS_RTS" = state::RTS, "IBV_QPS_ERR" = state::ERR,
        "IBV_QP_STATE" = mask::STATE, "IBV_QP_CUR_STATE" = mask::CUR_STATE,
        "IBV_QP_ACCESS_FLAGS" = mask::ACCESS_FLAGS, "IBV_QP_PKEY_INDEX" = mask::PKEY_INDEX,
        "IBV_QP_PORT" = mask::PORT, "IBV_QP_AV" = mask::AV, "IBV_QP_PATH_MTU" = mask::PATH_MTU,
        "IBV_QP_TIMEOUT" = mask::TIMEOUT, "IBV_QP_RETRY_CNT" = mask::RETRY_CNT,
        "IBV_QP_RNR_RETRY" = mask::RNR_RETRY, "IBV_QP_RQ_PSN" = mask::RQ_PSN,
        "IBV_QP_MAX_QP_RD_ATOMIC" = mask::MAX_QP_RD_ATOMIC, "IBV_QP_ALT_PATH" = mask::ALT_PATH,
        "IBV_QP_MIN_RNR_TIMER" = mask::MIN_RNR_TIMER, "IBV_QP_SQ_PSN" = mask::SQ_PSN,
        "IBV_QP_MAX_DEST_RD_ATOMIC" = mask::MAX_DEST_RD_ATOMIC, "IBV_QP_PATH_MIG_STATE" = mask::PATH_MIG_STATE,
        "IBV_QP_DEST_QPN" = mask::DEST_QPN,
    }
    lines
}

/// Compiles a program against the header; none where there is none.
fn compiled(name: &str, text: &str, arguments: &[&str]) -> Option<PathBuf> {
    if !Path::new("/usr/include/infiniband/verbs.h").exists() {
        println!("there is no infiniband/verbs.h: not compared");
        return None;
    }
    let dir = std::env::temp_dir().join(format!("fake-verbs-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("program.c"), text).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-Wall", "program.c", "-o", "program"]).args(arguments).current_dir(&dir);
    let made = compiler.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(dir)
}

fn said(dir: PathBuf, env: &[(String, String)]) -> String {
    let output = Command::new(dir.join("program")).envs(env.iter().cloned()).output().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn structures_are_the_headers() {
    let lines = lines();
    let mut text =
        String::from("#include <infiniband/verbs.h>\n#include <stddef.h>\n#include <stdio.h>\nint main() {\n");
    for (what, _) in &lines {
        text += &format!("printf(\"%zu\\n\", (size_t)({what}));\n");
    }
    let Some(dir) = compiled("layout", &(text + "}\n"), &[]) else { return };
    let said: Vec<usize> = said(dir, &[]).lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(said.len(), lines.len());
    for ((what, ours), theirs) in lines.into_iter().zip(said) {
        assert_eq!(ours, theirs, "{what}");
    }
}

#[test]
fn a_c_program_uses_it() {
    let fabric = Fabric::rxe(1);
    let library = fabric.library().display().to_string();
    let Some(dir) = compiled("program", include_str!("program.c"), &[&library]) else { return };
    assert_eq!(said(dir, &fabric.env("linux0")), "done\n");
    assert_eq!(fabric.broken(), [""; 0]);
    assert_eq!(fabric.objects().len(), 0);
}

#[test]
fn what_mlx_was_compiled_against() {
    // offsets in the machine code of libjaccl.dylib, which was compiled against Apple's header
    assert_eq!(offset_of!(Context, ops) + offset_of!(Ops, poll_cq), 96);
    assert_eq!(offset_of!(Context, ops) + offset_of!(Ops, post_send), 208);
    assert_eq!(offset_of!(Context, ops) + offset_of!(Ops, post_recv), 216);
    assert_eq!((offset_of!(Mr, lkey), offset_of!(Qp, qp_num), size_of::<Wc>()), (36, 52, 48));
    assert_eq!((size_of::<SendWr>(), offset_of!(SendWr, send_flags)), (128, 32));
    assert_eq!((offset_of!(QpInitAttr, cap), offset_of!(QpInitAttr, qp_type)), (32, 52));
    assert_eq!((offset_of!(QpAttr, ah_attr), offset_of!(QpAttr, port_num), size_of::<QpAttr>()), (56, 129, 144));
}
